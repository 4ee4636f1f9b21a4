"""`python -m tests.support.gpu_rig`: a JSON request per line on stdin, a JSON answer per line on stdout.

    {"model": "package.module:function", "arguments": {}, "precision": "bf16", "contestant": {"kind": "default"}}
    {"ok": true, "result": {...}, "report": {...} or null, "seconds": 4.2}
    {"ok": false, "error": "...", "seconds": 0.1}

The function returns a module and its batch, best on the meta device. `arguments` may be left out, as may "sm". A graph
is captured once per model, precision and card; a wrapped one each time. Whatever torch prints goes to stderr.
"""

import json
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import asdict
from typing import Any

import remat_pass
from remat_pass import _torch_compat
from tests.support.gpu_rig.capture import Capture, capture
from tests.support.gpu_rig.contestant import Contestant, find_function, read_contestant
from tests.support.gpu_rig.fake_gpu import fake_gpu
from tests.support.gpu_rig.lowering import RigConfig, lower_captured

_REPORTED = (
    "origin",
    "budget_bytes",
    "predicted_peak_bytes",
    "predicted_step_ns",
    "unconstrained_peak_bytes",
    "unconstrained_step_ns",
    "least_peak_bytes",
)

Captures = dict[str, Capture]


def main() -> None:
    """Answer requests until stdin ends."""
    captures: Captures = {}
    for line in sys.stdin:
        if line.strip():
            print(json.dumps(_answer(line, captures)), flush=True)


def _answer(line: str, captures: Captures) -> dict[str, Any]:
    begin = time.perf_counter()
    try:
        with redirect_stdout(sys.stderr):
            answer = {"ok": True, **_serve(json.loads(line), captures)}
    except Exception as error:  # whatever a model or a contestant does, the next request is answered
        traceback.print_exc()
        answer = {"ok": False, "error": f"{type(error).__name__}: {error}"}
    return {**answer, "seconds": round(time.perf_counter() - begin, 3)}


def _serve(request: Mapping[str, Any], captures: Captures) -> dict[str, Any]:
    contestant = read_contestant(request.get("contestant", {}))
    config = RigConfig(request.get("precision", "fp32"), request.get("sm", 90))
    remat_pass.clear_reports()
    with fake_gpu(config.sm):
        captured = _capture(request, contestant, config, captures)
        config = contestant.configure(config, checkpoints=_torch_compat.has_checkpoints(captured.graph))
        result = lower_captured(captured, contestant.partitioner, config=config)
    reports = remat_pass.reports()
    return {"result": asdict(result), "report": _figures(reports[-1]) if reports else None}


def _capture(request: Mapping[str, Any], contestant: Contestant, config: RigConfig, captures: Captures) -> Capture:
    arguments = request.get("arguments", {})
    key = json.dumps([request["model"], arguments, config.precision, config.sm], sort_keys=True)
    if contestant.wrap is None and key in captures:
        return captures[key]
    module, batch = find_function(request["model"])(**arguments)
    if contestant.wrap is not None:
        return capture(contestant.wrap(module) or module, batch, config.precision)
    captures[key] = capture(module, batch, config.precision)
    return captures[key]


def _figures(report: remat_pass.RematReport) -> dict[str, Any]:
    return {name: getattr(report, name) for name in (*_REPORTED, "margin_permille", "planning_seconds")}


main()
