"""Hugging Face models with random weights and the loss inside, each capturing as one graph under `torch.compile`.

Two things in Transformers 5 break a training graph, and both are settings: the key-value cache (`use_cache=False`), and
the loss function, which is looked up by the class's source file unless the instance names it (`loss_type`).
Vocabularies are small, so that activations and not embedding gradients decide the peak.
"""

import transformers
from torch import Tensor, nn


class WithLoss(nn.Module):
    """A Hugging Face model that returns its own loss for `labels`."""

    def __init__(self, model: nn.Module, loss_type: str) -> None:
        super().__init__()
        model.loss_type = loss_type
        self.model = model

    def forward(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """The loss for token ids (batch, length) or images (batch, channels, height, width)."""
        return self.model(inputs, labels=labels).loss


class SummedHiddenState(nn.Module):
    """A Hugging Face model whose loss is the sum of its last hidden state, as in pytorch#197838."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        """The loss for token ids (batch, length)."""
        return self.model(input_ids=ids).last_hidden_state.sum()


def inner(module: nn.Module) -> nn.Module:
    """The Hugging Face model inside either of the two."""
    return module.model


def gpt2(*, layers: int, width: int, heads: int, context: int, vocabulary: int, dropout: float) -> nn.Module:
    """GPT-2 with its next-token loss."""
    config = transformers.GPT2Config(
        n_layer=layers,
        n_embd=width,
        n_head=heads,
        n_positions=context,
        vocab_size=vocabulary,
        embd_pdrop=dropout,
        resid_pdrop=dropout,
        attn_pdrop=dropout,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )
    return WithLoss(transformers.GPT2LMHeadModel(config), "ForCausalLM").train()


def gpt2_blocks(module: nn.Module) -> list[nn.Module]:
    return list(module.model.transformer.h)


def bert(*, layers: int, width: int, heads: int, context: int, vocabulary: int) -> nn.Module:
    """BERT with its masked-token loss, without dropout."""
    config = transformers.BertConfig(
        num_hidden_layers=layers,
        hidden_size=width,
        intermediate_size=4 * width,
        num_attention_heads=heads,
        max_position_embeddings=context,
        vocab_size=vocabulary,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        use_cache=False,
    )
    return WithLoss(transformers.BertForMaskedLM(config), "ForMaskedLM").train()


def bert_blocks(module: nn.Module) -> list[nn.Module]:
    return list(module.model.bert.encoder.layer)


def vit(*, layers: int, width: int, heads: int, image: int, patch: int, classes: int) -> nn.Module:
    """ViT with the cross entropy of its classifier."""
    config = transformers.ViTConfig(
        num_hidden_layers=layers,
        hidden_size=width,
        intermediate_size=4 * width,
        num_attention_heads=heads,
        image_size=image,
        patch_size=patch,
        num_labels=classes,
    )
    config.problem_type = "single_label_classification"
    return WithLoss(transformers.ViTForImageClassification(config), "ForImageClassification").train()


def vit_blocks(module: nn.Module) -> list[nn.Module]:
    return list(module.model.vit.layers)


def resnet(*, widths: tuple[int, ...], depths: tuple[int, ...], classes: int) -> nn.Module:
    """ResNet of basic layers (two 3x3 convolutions each) with the cross entropy of its classifier."""
    config = transformers.ResNetConfig(
        embedding_size=widths[0],
        hidden_sizes=list(widths),
        depths=list(depths),
        layer_type="basic",
        num_labels=classes,
    )
    config.problem_type = "single_label_classification"
    return WithLoss(transformers.ResNetForImageClassification(config), "ForImageClassification").train()


def resnet_blocks(module: nn.Module) -> list[nn.Module]:
    return [layer for stage in module.model.resnet.encoder.stages for layer in stage.layers]


def t5(*, layers: int, width: int, heads: int, vocabulary: int) -> nn.Module:
    """T5 with as many layers in its encoder as in its decoder and its next-token loss, without dropout."""
    config = transformers.T5Config(
        d_model=width,
        d_kv=width // heads,
        d_ff=4 * width,
        num_layers=layers,
        num_heads=heads,
        vocab_size=vocabulary,
        dropout_rate=0.0,
        decoder_start_token_id=0,
        use_cache=False,
    )
    return WithLoss(transformers.T5ForConditionalGeneration(config), "ForConditionalGeneration").train()


def t5_blocks(module: nn.Module) -> list[nn.Module]:
    return [*module.model.encoder.block, *module.model.decoder.block]


def llama(*, layers: int, width: int, hidden: int, heads: int, context: int, vocabulary: int) -> nn.Module:
    """Llama with its next-token loss; two query heads share a key."""
    config = _llama_config(layers, width, hidden, heads, vocabulary)
    config.num_key_value_heads, config.max_position_embeddings = heads // 2, context
    return WithLoss(transformers.LlamaForCausalLM(config), "ForCausalLM").train()


def llama_blocks(module: nn.Module) -> list[nn.Module]:
    return list(module.model.model.layers)


def deep_llama(*, layers: int, width: int, hidden: int, heads: int, vocabulary: int) -> nn.Module:
    """Llama without a head: the reproducer of pytorch#197838 at 32 layers, width 256, hidden 688."""
    config = _llama_config(layers, width, hidden, heads, vocabulary)
    return SummedHiddenState(transformers.LlamaModel(config)).train()


def _llama_config(layers: int, width: int, hidden: int, heads: int, vocabulary: int) -> transformers.LlamaConfig:
    return transformers.LlamaConfig(
        hidden_size=width,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        vocab_size=vocabulary,
        use_cache=False,
    )


def deep_llama_blocks(module: nn.Module) -> list[nn.Module]:
    return list(module.model.layers)
