"""ONNX Runtime with the settings that all models here are run with."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnxruntime

PROCESSOR = "CPUExecutionProvider"
_FATAL = 4  # of a log's levels: what goes wrong is raised too


def one_thread_session(
    model: str | bytes, providers: Sequence[str] = (PROCESSOR,), optimised: bool = True
) -> "onnxruntime.InferenceSession":
    """A session of one thread: whole photographs side by side keep cores busier than threads on parts of one,
    and whoever multiplies has threads of their own.

    Args:
      model: path of its file, or its content.
      providers: ONNX Runtime's names of what runs it, the first choice first.
      optimised: whether the graph is rewritten to be fast; without it loads sooner.
    """
    import onnxruntime  # takes a while, and much memory, for those only who run a model

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model, options, providers=list(providers))
