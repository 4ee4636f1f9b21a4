"""Which storages a node creates, and which it only shares.

Fake tensors know: a view's fake value has the storage of its base's fake value, `_unsafe_view` and in-place results
included, whatever the schema says. A pass may give a node a fresh fake value; then the schema's alias annotation
decides. When neither shows an alias the node is taken to allocate, which can only overestimate a peak.
"""

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from remat_pass import _torch_compat
from remat_pass.problem import NO_BYTES, Size


@dataclass(frozen=True, slots=True)
class Storages:
    """What a node does to memory: `size` bytes are created, the storages of the `holds` nodes stay alive with it.

    `output_bytes` are those of all outputs of an op that returns several; its parts own them.
    """

    size: Size = NO_BYTES
    holds: tuple[fx.Node, ...] = ()
    output_bytes: int = 0


def storages_of(node: fx.Node, device_type: str) -> Storages:
    """Storages of one node, counting only those on `device_type`."""
    value = node.meta.get("val")
    if node.target is operator.getitem and not isinstance(node.all_input_nodes[0].meta.get("val"), torch.Tensor):
        return _storages_of_part(node, device_type)
    own = _storage_ids(value)
    held = tuple(n for n in node.all_input_nodes if own & _storage_ids(n.meta.get("val")))
    if isinstance(value, torch.Tensor):
        held = held or _aliased_by_schema(node)
        return Storages(NO_BYTES if held else storage_size(value, device_type), held)
    of_inputs = set().union(*(_storage_ids(n.meta.get("val")) for n in held))
    fresh = (t for t in tensors_in(value) if not _storage_ids(t) & of_inputs)
    return Storages(NO_BYTES, held, sum(storage_size(t, device_type).hint for t in fresh))


def _storages_of_part(node: fx.Node, device_type: str) -> Storages:
    """A part owns its storage, unless the op returned a view of something it read."""
    whole, value = node.all_input_nodes[0], node.meta.get("val")
    of_inputs = set().union(*(_storage_ids(n.meta.get("val")) for n in whole.all_input_nodes))
    if _storage_ids(value) & of_inputs or not isinstance(value, torch.Tensor):
        return Storages(NO_BYTES, (whole,))
    return Storages(storage_size(value, device_type))


def storage_size(value: Any, device_type: str | None = None) -> Size:
    """Bytes behind a fake value: the whole storage of a strided tensor; 0 for what has none or lives elsewhere."""
    if not isinstance(value, torch.Tensor) or (device_type and value.device.type != device_type):
        return NO_BYTES
    try:
        count = value.untyped_storage().nbytes()
    except (NotImplementedError, RuntimeError):  # sparse and other layouts without one storage
        count = value.numel() * value.element_size()
    expression = str(count) if isinstance(count, torch.SymInt) else None
    return Size(_torch_compat.size_hint(count), expression)


def main_device_type(nodes: tuple[fx.Node, ...]) -> str:
    """The device type that holds the most bytes: the one whose memory is planned."""
    totals: dict[str, int] = {}
    for node in nodes:
        for tensor in tensors_in(node.meta.get("val")):
            totals[tensor.device.type] = totals.get(tensor.device.type, 0) + storage_size(tensor).hint
    return max(totals, key=totals.__getitem__, default="cpu")


def tensors_in(value: Any) -> tuple[torch.Tensor, ...]:
    """The tensors among the leaves of a fake value, in order."""
    if isinstance(value, torch.Tensor):
        return (value,)
    return tuple(leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor))


def _storage_ids(value: Any) -> set[int]:
    ids = set()
    for tensor in tensors_in(value):
        try:
            ids.add(tensor.untyped_storage()._cdata)
        except (NotImplementedError, RuntimeError):
            continue
    return ids


def _aliased_by_schema(node: fx.Node) -> tuple[fx.Node, ...]:
    schema = getattr(node.target, "_schema", None)
    if schema is None or not any(r.alias_info for r in schema.returns):
        return ()
    aliased = [
        argument
        for argument, declared in zip(node.args, schema.arguments, strict=False)
        if declared.alias_info is not None and isinstance(argument, fx.Node)
    ]
    return tuple(aliased[:1])
