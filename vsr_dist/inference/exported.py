"""Writing a generator as ONNX or as a program of torch.export, and checking what was written."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.export import Dim

from vsr_dist.core.errors import MissingExtraError
from vsr_dist.inference.exportable import Exportable, ExportError, play, some

Format = Literal["onnx", "torch"]
FORMAT_VERSION = 1
# What a graph holds of its own description: a property of the ONNX model, an extra file of the .pt2.
METADATA_NAME = "vsr_dist.json"
# Antialiased resizing, which bicubic enlargement uses, came with 18; grid sampling by "linear" with 20.
OPSET = 20
# Largest difference from the generator in any image or state that a written graph may have.
TOLERANCE = 1e-4
_CHECKED_FRAMES = 4
# Protocol buffers, which ONNX files are, end at 2 GiB.
_MAX_BYTES = 1_900_000_000
_MAX_SIDE_PX = 16384


def _sizes(exportable: Exportable) -> Iterator[tuple[Any, int]]:
    """(Free sizes as torch.export takes them, what they are multiples of), in the order in which they are tried.

    First any size, then multiples of 4, which networks that halve the image twice need.
    """
    if exportable.size is not None:
        yield None, 1
        return
    for multiple in (1, 4):
        least = -(-max(exportable.generator.min_px, 8) // multiple)
        sides = [Dim(name, min=least, max=_MAX_SIDE_PX // multiple) for name in ("height", "width")]
        rows, columns = sides if multiple == 1 else [multiple * side for side in sides]
        tensors = (exportable.example[0], *exportable.states)
        free = [{tensor.dim() - 2: rows, tensor.dim() - 1: columns} for tensor in tensors]
        yield (free[0], *some(free[1:])), multiple


def _first_that_works(exportable: Exportable, write: Callable[[Any, int], None]) -> int:
    """Call `write(free sizes, multiple)` until one is not refused; returns the multiple."""
    failure: Exception | None = None
    for shapes, multiple_px in _sizes(exportable):
        try:
            with torch.no_grad(), warnings.catch_warnings():
                # They speak to whoever writes exporters: names of axes, buffers of LSTMs.
                warnings.simplefilter("ignore")
                write(shapes, multiple_px)
            return multiple_px
        # torch.export has no common base for what it raises: guards, unsupported operators, Python it cannot follow.
        except Exception as error:  # noqa: BLE001
            failure = error
    reason = " ".join(str(failure.__cause__ or failure).split())[:300] if failure else ""
    advice = "give --height and --width" if exportable.size is None else "its code does what a graph cannot"
    raise ExportError(f"torch.export cannot trace this generator; {advice} ({reason})") from failure


def _metadata(exportable: Exportable, multiple_px: int, description: dict[str, Any]) -> str:
    contract = asdict(exportable.contract(multiple_px))
    kept = {key: description[key] for key in ("generator", "provenance") if key in description}
    return json.dumps({"format_version": FORMAT_VERSION, **contract, **kept}, indent=1)


def write_torch(exportable: Exportable, path: Path, description: dict[str, Any]) -> int:
    """Write a `.pt2` for `torch.export.load`; returns what free sizes must be multiples of."""

    def write(shapes: Any, multiple_px: int) -> None:  # noqa: ANN401
        program = torch.export.export(exportable.module, exportable.example, dynamic_shapes=shapes, strict=False)
        torch.export.save(program, path, extra_files={METADATA_NAME: _metadata(exportable, multiple_px, description)})

    return _first_that_works(exportable, write)


def write_onnx(exportable: Exportable, path: Path, description: dict[str, Any]) -> int:
    """Write an ONNX model in one file; returns what free sizes must be multiples of."""
    need_onnx()
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in exportable.module.state_dict().values())
    if num_bytes > _MAX_BYTES:
        raise ExportError(f"ONNX files end at 2 GiB, and this generator has {num_bytes:,} bytes; use --format torch")

    def write(shapes: Any, multiple_px: int) -> None:  # noqa: ANN401
        contract = exportable.contract(multiple_px)
        program = torch.onnx.export(
            exportable.module,
            exportable.example,
            dynamo=True,
            dynamic_shapes=shapes,
            input_names=list(contract.inputs),
            output_names=list(contract.outputs),
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )
        assert program is not None, "dynamo=True returns the program"
        name = METADATA_NAME.removesuffix(".json")
        program.model.metadata_props[name] = _metadata(exportable, multiple_px, description)
        program.save(str(path))

    return _first_that_works(exportable, write)


def need_onnx() -> None:
    """Raise MissingExtraError unless what ONNX needs is installed."""
    try:
        import onnx  # noqa: F401, PLC0415
        import onnxruntime  # noqa: F401, PLC0415
        import onnxscript  # noqa: F401, PLC0415
    except ImportError as error:
        raise MissingExtraError(
            f"export to ONNX needs the extra 'onnx' ({error}); install it: pip install 'vsr-dist[onnx]'"
        ) from error


def largest_difference(exportable: Exportable, format: Format, path: Path, multiple_px: int) -> float:
    """The written file, loaded anew, against the generator over four frames: the worst of all images and states.

    With free sizes the frames have another size than that of tracing.
    """
    size = exportable.size
    if size is None:
        height, width = exportable.example_size
        size = (height + 3 * multiple_px, width + multiple_px)
    frames = exportable.frames(_CHECKED_FRAMES, size)
    states = tuple(tensor.new_zeros((*tensor.shape[:-2], *size)) for tensor in exportable.states)
    run = _onnx_runner(path) if format == "onnx" else torch.export.load(path).module()
    worst = 0.0
    with torch.no_grad():
        pairs = zip(play(exportable.module, frames, states), play(run, frames, states), strict=True)
        for ours, theirs in pairs:
            worst = max(worst, *(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)))
    return worst


def _onnx_runner(path: Path) -> Callable[..., tuple[Tensor, ...]]:
    import onnxruntime  # noqa: PLC0415

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]

    def run(frame: Tensor, states: Sequence[Tensor] = ()) -> tuple[Tensor, ...]:
        arrays = [np.ascontiguousarray(tensor.numpy()) for tensor in (frame, *states)]
        return tuple(torch.from_numpy(result) for result in session.run(None, dict(zip(names, arrays, strict=True))))

    return run
