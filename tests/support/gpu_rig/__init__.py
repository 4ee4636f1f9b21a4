"""What a training step would allocate and run on an NVIDIA GPU, found out on a machine without one.

    module, batch ─► Dynamo ─► AOTAutograd ─► partitioner ─► Inductor ─► generated CUDA code ─► run on fake tensors
                     └──────────── all of it torch.compile's own, on FakeTensor(device="cuda") ──────────────┘

Everything up to the generated code is what a user's machine would do. The code is then run with fake tensors and
kernels that do nothing, while a meter counts storages from birth to death and adds up each kernel's work.

    capture.py     module and batch on fake CUDA tensors, through Dynamo
    generate.py    the captured graph through AOTAutograd, a partitioner and Inductor: two generated wrappers
    wrapper.py     running a generated wrapper with kernels of ours
    meter.py       storages alive, kernels launched, bytes moved, FLOPs
    lowering.py    `lower`: all of the above; `GpuLowering`: the figures
    attention.py   which attention kernel a GPU would pick
    fake_gpu.py    what Inductor and Triton ask about the device
    hooks.py       what the autograd engine asks about the device (C++)
    ptx.py         every Triton kernel compiled to PTX
    interpret.py   gradients from the generated code, by Triton's interpreter
    contestant.py  who partitions, as JSON; __main__.py  the command line

Not seen: scratch of library kernels (cuBLAS, cuDNN and attention workspaces count as 0), rounding and fragmentation of
the caching allocator, autotuning. Times are modelled, never measured.

The hooks must be in place before torch is imported, and they stay: importing this package loads them, so it belongs
into a process of its own. Where torch was imported first nothing is loaded, and `lower` refuses.
"""

from tests.support.gpu_rig import hooks

hooks.load()
