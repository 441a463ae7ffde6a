"""What a loaded SavedModel offers, and how it is called: the contracts of tensorflow/models, research/delf.

Told apart by the object: TF1-style exports have `prune` and are fed by tensor name, TF2 ones have a signature
with keywords.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from transforms.models.model import ModelError

# Name: dtype and the ranks that are allowed.
_TENSORS = {
    "input_image": ("uint8", (3,)),
    "input_scales": ("float32", (1,)),
    "input_max_feature_num": ("int32", (0,)),
    "input_abs_thres": ("float32", (0,)),
    "input_global_scales_ind": ("int32", (1,)),
    "boxes": ("float32", (2,)),
    "features": ("float32", (2,)),
    "scores": ("float32", (1, 2)),
    "global_descriptors": ("float32", (2,)),
}
_INPUTS = (
    "input_image",
    "input_scales",
    "input_max_feature_num",
    "input_abs_thres",
    "input_global_scales_ind",
)
_LOCAL_OUTPUTS = ("boxes", "features", "scores")
_OUTPUTS = (*_LOCAL_OUTPUTS, "global_descriptors")

Feeds = dict[str, Any]
Call = Callable[[Feeds], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Contract:
    """What a SavedModel offers.

    Attributes:
      kind: "prune" for TF1-style exports, "signature" for TF2 ones.
      inputs, outputs: (name, dtype, shape) of what is fed and fetched; -1 in a shape is any length.
      has_global: it gives global descriptors.
      has_local: it gives local features.
    """

    kind: str
    inputs: tuple[tuple[str, str, tuple[int, ...]], ...]
    outputs: tuple[tuple[str, str, tuple[int, ...]], ...]
    has_global: bool
    has_local: bool


def bind(loaded: Any, model_dir: str, constant_weights: bool = False) -> tuple[Contract, Call]:
    """The contract of a loaded SavedModel, and the function that calls it.

    Args:
      loaded: what tf.saved_model.load gave.
      model_dir: where it lies, for messages.
      constant_weights: make the weights part of the graph where that can be done, see `_with_constants`.

    Returns:
      The contract, and a function from tensors by input name (exactly those of the contract) to tensors by
      output name. It never traces again for another image size.

    Raises:
      ModelError: it offers no known contract; the message lists what was found.
    """
    graph_ops = {op.name: op for op in loaded.graph.get_operations()} if hasattr(loaded, "prune") else {}
    if "input_image" in graph_ops:
        inputs = {
            name: graph_ops[name].outputs[0]
            for name in _INPUTS
            if name in graph_ops and graph_ops[name].type == "Placeholder"
        }
        outputs = {name: graph_ops[name].outputs[0] for name in _OUTPUTS if name in graph_ops}
        contract = _check_contract("prune", inputs, outputs, model_dir)
        fetches = [name for name, _, _ in contract.outputs]
        try:
            function = loaded.prune([f"{name}:0" for name in inputs], [f"{name}:0" for name in fetches])
        except Exception as error:  # TensorFlow raises KeyError, ValueError or its own UnliftableError
            raise ModelError(
                f"{model_dir}: {fetches} cannot be computed from {list(inputs)}: {first_line(error)}"
            ) from error
        function = _with_constants(function) if constant_weights else function
        return contract, lambda feeds: dict(zip(fetches, function(*(feeds[name] for name in inputs))))

    signatures = getattr(loaded, "signatures", {})
    signature = signatures.get("serving_default") if hasattr(signatures, "get") else None
    if signature is None:
        raise ModelError(
            f"{model_dir} offers neither a graph with an input_image nor a signature serving_default; "
            f"found placeholders {[name for name, op in graph_ops.items() if op.type == 'Placeholder']} "
            f"and signatures {sorted(signatures)}"
        )
    inputs = signature.structured_input_signature[1]
    contract = _check_contract("signature", inputs, signature.structured_outputs, model_dir)
    fetches = [name for name, _, _ in contract.outputs]
    ordered_inputs, ordered_outputs = (
        sorted(inputs),
        sorted(signature.structured_outputs),
    )  # as TensorFlow flattens a dict
    constant = _with_constants(signature) if constant_weights else signature
    if (
        constant is not signature
        and len(constant.inputs) == len(ordered_inputs)
        and len(constant.outputs) == len(ordered_outputs)
    ):
        return contract, lambda feeds: dict(
            zip(ordered_outputs, constant(*(feeds[name] for name in ordered_inputs)))
        )

    def call(feeds: Feeds) -> dict[str, Any]:
        results = signature(**feeds)
        return {name: results[name] for name in fetches}

    return contract, call


def _with_constants(function: Any) -> Any:
    """A concrete function with its variables as constants, taking and giving flat tensors; itself where that
    cannot be done.

    TensorFlow then converts weights to bfloat16 once instead of in every call, and folds batch normalisation
    into convolutions. But loading takes longer and far more memory, which only bfloat16 is worth
    (benchmarks/README.md, "Choices").
    """
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    if not function.captured_inputs:
        return function
    try:
        return convert_variables_to_constants_v2(function)
    except Exception:  # whatever a graph holds that has no constant, such as a table
        return function


def _check_contract(kind: str, inputs: Feeds, outputs: Feeds, model_dir: str) -> Contract:
    """The contract that tensors or specs by name make up, or a ModelError that lists them all."""
    has_local, has_global = "boxes" in outputs, "global_descriptors" in outputs
    fetched = [*(_LOCAL_OUTPUTS if has_local else ()), *(("global_descriptors",) if has_global else ())]
    problems = [f"input {name} is missing" for name in ("input_image", "input_scales") if name not in inputs]
    problems += [f"input {name} is not known" for name in sorted(set(inputs) - set(_INPUTS))]
    problems += [f"output {name} is missing" for name in fetched if name not in outputs]
    if not fetched:
        problems.append("there are neither global_descriptors nor boxes among the outputs")
    offered = {**inputs, **{name: outputs[name] for name in fetched if name in outputs}}
    for name in sorted(set(offered) & set(_TENSORS)):
        (dtype, ranks), found = _TENSORS[name], offered[name]
        if found.dtype.name != dtype or found.shape.rank not in (None, *ranks):
            problems.append(f"{name} must be {dtype} of rank {' or '.join(map(str, ranks))}")
    if problems:
        raise ModelError(
            f"{model_dir} has no contract that is known: {'; '.join(problems)}. "
            f"Found ({kind}) inputs {_listing(inputs)}; outputs {_listing(outputs)}"
        )

    def described(names: Iterable[str], tensors: Feeds) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
        return tuple((name, tensors[name].dtype.name, _static_shape(tensors[name])) for name in names)

    ordered = [name for name in _INPUTS if name in inputs]
    return Contract(kind, described(ordered, inputs), described(fetched, outputs), has_global, has_local)


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type: TensorFlow adds whole graphs."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _static_shape(tensor: Any) -> tuple[int, ...]:
    return (
        tuple(-1 if side is None else side for side in tensor.shape) if tensor.shape.rank is not None else ()
    )


def _listing(tensors: Feeds) -> str:
    return (
        ", ".join(f"{name} {tensors[name].dtype.name} {tensors[name].shape}" for name in sorted(tensors))
        or "none"
    )
