"""What a budget needs to know of a model: a dozen sizes, from an artifact's manifest or from a checkpoint and a recipe."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import pydantic

from mobile_export.budget.matrix_shapes import matrix_shape
from mobile_export.errors import InputError
from mobile_export.families.spec import DecoderSpec, RwkvSpec
from mobile_export.manifest import NAME, Manifest, folder_of
from mobile_export.quantize.matrix_plan import MatrixPlan, uses
from mobile_export.quantize.recipe import EMBEDDING, POSITIONS, Precision, Recipe, recipe_from

if TYPE_CHECKING:
    from mobile_export.quantize.weights import ModelWeights

Format = Literal["pte", "onnx", "coreml"]
VALUE_BYTES = {"float32": 4, "float16": 2, "int8": 1}
INT8_ROW_EXTRA = 5  # a .pte keeps a float32 scale and an int8 zero point beside every int8 row of a head
USUAL_PROMPT = 128  # tokens in one call, where the artifact leaves it open
GATHERED = (EMBEDDING, POSITIONS)
GRAPH_BYTES, GRAPH_BYTES_PER_EXECUTION = 20_000, 10_000  # of a .pte: 84,000 with 6 executions, 323,000 with 30

_SPEC: pydantic.TypeAdapter[DecoderSpec] = pydantic.TypeAdapter(DecoderSpec)
_RWKV: pydantic.TypeAdapter[RwkvSpec] = pydantic.TypeAdapter(RwkvSpec)


@dataclass(frozen=True)
class Work:
    """What one token costs in some matrices: bytes of codes and scales to read, values to multiply with, by their width."""

    bytes_4_bit: int
    bytes_wider: int
    parameters_4_bit: int
    parameters_wider: int

    @property
    def bytes(self) -> int:
        return self.bytes_4_bit + self.bytes_wider

    @property
    def parameters(self) -> int:
        return self.parameters_4_bit + self.parameters_wider


@dataclass(frozen=True)
class Executions:
    """Executions that cost the same. again: each right after another one of the same block. count: how many they are."""

    work: Work
    again: bool
    count: int


def work_of(matrices: Sequence[MatrixPlan]) -> Work:
    """The work of some matrices together."""
    four = [matrix for matrix in matrices if matrix.precision.bits == 4]
    wider = [matrix for matrix in matrices if matrix.precision.bits != 4]
    stored = (sum(map(payload_bytes, some)) for some in (four, wider))
    return Work(*stored, *(sum(matrix.parameters for matrix in some) for some in (four, wider)))


def payload_bytes(matrix: MatrixPlan) -> int:
    """Codes and scales as a kernel reads them: a tied table's scales once, in whatever copies a file has them."""
    group = matrix.precision.group_size
    return matrix.code_bytes + (matrix.parameters // group * 2 if group else matrix.scale_bytes)


@dataclass(frozen=True)
class ModelFacts:
    """One model as it would run.

    matrices: with their precision and uses. blocks: number in the file of each stored block.
    schedule: stored block of each execution. slots: executions with a KV cache.
    max_context: KV rows. prompt_chunk: most tokens in one call; .pte reserves for so many at export.
    float_bytes: norms, biases, kernels. graph_bytes: the file's graph. state_bytes: what does not grow with the text.
    attention: "custom" or "core", of a .pte. activations, all_logits, portable: of ONNX.
    trained_context: positions the model was trained for, where that is known.
    """

    format: Format
    spec: DecoderSpec | RwkvSpec
    recipe: Recipe
    matrices: tuple[MatrixPlan, ...]
    blocks: tuple[int, ...]
    schedule: tuple[int, ...]
    tied: bool
    slots: int
    kv_dtype: str
    state_bytes: int
    max_context: int
    prompt_chunk: int
    float_bytes: int
    graph_bytes: int
    attention: str = "custom"
    activations: str = "float32"
    all_logits: bool = False
    portable: bool = False
    trained_context: int | None = None

    @property
    def stored_blocks(self) -> int:
        return max(self.schedule) + 1

    @property
    def parameters(self) -> int:
        """Values of all matrices, every stored one once."""
        return sum(matrix.parameters for matrix in self.matrices)

    @cached_property
    def multiplied(self) -> tuple[MatrixPlan, ...]:
        """The matrices something is multiplied with, a tied table among them; others are only gathered from."""
        return tuple(m for m in self.matrices if m.name not in GATHERED or (m.name == EMBEDDING and self.tied))

    @cached_property
    def counted(self) -> tuple[tuple[MatrixPlan, int], ...]:
        """The multiplied matrices, those that differ in nothing but their number once, with how many they are."""
        kinds: dict[tuple[object, ...], list[MatrixPlan]] = {}
        for matrix in self.multiplied:
            place = "blocks" if matrix.name.startswith("blocks.") else matrix.name
            kinds.setdefault((place, matrix.shape, matrix.precision, matrix.uses), []).append(matrix)
        return tuple((matrices[0], len(matrices)) for matrices in kinds.values())

    @cached_property
    def work(self) -> tuple[Work, ...]:
        """What an execution of each stored block does."""
        held: list[list[MatrixPlan]] = [[] for _ in range(self.stored_blocks)]
        for matrix in self.multiplied:
            if matrix.name.startswith("blocks."):
                held[int(matrix.name.split(".")[1])].append(matrix)
        return tuple(map(work_of, held))

    @cached_property
    def executions(self) -> tuple[Executions, ...]:
        """The schedule, executions that cost the same once, with how many they are."""
        before = (None, *self.schedule)
        kinds = Counter((self.work[stored], stored == last) for stored, last in zip(self.schedule, before, strict=False))
        return tuple(Executions(work, again, count) for (work, again), count in kinds.items())

    @cached_property
    def outer_work(self) -> tuple[Work, ...]:
        """What each matrix outside of blocks does: the head, and projections around the stream."""
        return tuple(work_of([matrix]) for matrix in self.multiplied if not matrix.name.startswith("blocks."))

    def kv_bytes(self, context: int) -> int:
        """Bytes of keys and values over all slots, with so many rows in each."""
        if isinstance(self.spec, RwkvSpec):
            return 0
        extra = INT8_ROW_EXTRA if self.format == "pte" and self.kv_dtype == "int8" else 0
        head = self.spec.head_dim * VALUE_BYTES[self.kv_dtype] + extra
        return 2 * self._kv_rows(context) * self.spec.num_key_value_heads * head

    def attended_positions(self, position: float) -> float:
        """Keys a token at a position is multiplied with, over all slots."""
        return sum(slots * (position if reach is None else min(position, reach)) for reach, slots in self._reaches)

    def _kv_rows(self, context: int) -> int:
        """Rows of all slots: in a .pte a windowed block keeps what its window and a call's tokens need."""
        if self.format != "pte":
            return context * sum(slots for _, slots in self._reaches)
        kept = [(slots, context if reach is None else reach + self.prompt_chunk - 1) for reach, slots in self._reaches]
        return sum(slots * min(context, rows) for slots, rows in kept)

    @cached_property
    def _reaches(self) -> tuple[tuple[int | None, int], ...]:
        """How many positions a slot attends to, None for all, and how many such slots there are."""
        if isinstance(self.spec, RwkvSpec):
            return ()
        kinds = [self.spec.blocks[self.blocks[stored]] for stored in self.schedule]
        return tuple(Counter(kind.reach for kind in kinds if kind.mixer == "attention").items())

    def with_recipe(self, recipe: Recipe) -> ModelFacts:
        """The same model stored by another recipe; its cache stays what it is."""
        matrices = tuple(dataclasses.replace(m, precision=recipe.precision_of(m.name)) for m in self.matrices)
        return dataclasses.replace(self, recipe=recipe, matrices=matrices)


def facts_of_manifest(manifest: Manifest, artifact: Path) -> ModelFacts:
    """The facts of a written artifact.

    Raises:
        InputError: the manifest contradicts itself: a spec, recipe or matrix that is not what the rest of it says.
    """
    where = str(folder_of(artifact) / NAME)
    spec = _spec(manifest.spec, where)
    recipe = recipe_from(manifest.recipe, f"{where}: recipe")
    blocks, schedule, tied = _sharing(manifest.sharing, where)
    for name, precision in manifest.matrices.items():
        if str(recipe.precision_of(name)) != precision:
            what = f"{name} is {precision}, the recipe beside it says {recipe.precision_of(name)}"
            raise InputError(where, what, "export the artifact again")
    for what, dtype in (("kv_cache.dtype", manifest.kv_cache.dtype), *_onnx_types(manifest)):
        if dtype not in VALUE_BYTES:
            raise InputError(where, f"{what} is {dtype!r}, not {', '.join(VALUE_BYTES)}", "export the artifact again")
    sizes = {part.name: part.bytes for part in manifest.parts}
    facts = ModelFacts(
        format=cast("Format", "coreml" if manifest.package else manifest.format),
        spec=spec,
        recipe=recipe,
        matrices=tuple(_matrix(name, spec, recipe, schedule, tied, where) for name in manifest.matrices),
        blocks=blocks,
        schedule=schedule,
        tied=tied,
        slots=manifest.kv_cache.slots,
        kv_dtype=manifest.kv_cache.dtype,
        state_bytes=manifest.kv_cache.state_bytes,
        max_context=manifest.max_context,
        prompt_chunk=manifest.pte.max_prompt if manifest.pte else min(USUAL_PROMPT, manifest.max_context),
        float_bytes=sizes.get("norms", 0),
        graph_bytes=sizes.get("graph", 0),
        attention=manifest.pte.attention if manifest.pte else "custom",
        activations=manifest.onnx.activations if manifest.onnx else "float32",
        all_logits=manifest.onnx.all_logits if manifest.onnx else False,
        portable=manifest.onnx.portable if manifest.onnx else False,
        trained_context=spec.max_position_embeddings,
    )
    said, known = manifest.kv_cache.bytes_at_max_context, facts.kv_bytes(manifest.max_context)
    if said != known:
        what = f"kv_cache.bytes_at_max_context is {said}, its spec gives {known}"
        raise InputError(where, what, "export the artifact again")
    return facts


def _onnx_types(manifest: Manifest) -> list[tuple[str, str]]:
    return [("onnx.activations", manifest.onnx.activations)] if manifest.onnx else []


def facts_of_weights(weights: ModelWeights, form: Format, *, max_context: int, attention: str = "custom") -> ModelFacts:
    """The facts of an artifact nobody has exported yet."""
    from mobile_export.quantize.sizes import kv_slots, state_bytes

    plan, spec, dtype = weights.plan, weights.recognised.spec, weights.recipe.kv.dtype
    kept = state_bytes(weights.recognised, plan)
    return ModelFacts(
        format=form,
        spec=spec,
        recipe=weights.recipe,
        matrices=tuple(weights.matrices.values()),
        blocks=plan.blocks,
        schedule=plan.schedule,
        tied=plan.tied,
        slots=kv_slots(weights.recognised, plan) if isinstance(spec, DecoderSpec) else 0,
        kv_dtype="float16" if form == "coreml" else dtype,
        state_bytes=kept // 2 if form == "coreml" else kept,
        max_context=max_context,
        prompt_chunk=min(USUAL_PROMPT, max_context),
        float_bytes=weights.predicted_bytes()["norms"],
        graph_bytes=GRAPH_BYTES + GRAPH_BYTES_PER_EXECUTION * len(plan.schedule),
        attention=attention,
        activations="float16" if form == "coreml" else "float32",
        trained_context=spec.max_position_embeddings,
    )


def _spec(values: Mapping[str, Any], where: str) -> DecoderSpec | RwkvSpec:
    try:
        return (_RWKV if "attention_hidden_size" in values else _SPEC).validate_python(dict(values))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in ("spec", *first["loc"]))
        raise InputError(where, f"{place}: {first['msg']}", "export the artifact again") from None


def _sharing(values: Mapping[str, Any], where: str) -> tuple[tuple[int, ...], tuple[int, ...], bool]:
    schedule, tied, blocks = values.get("schedule"), values.get("tied"), values.get("blocks")
    whole = isinstance(schedule, list) and schedule and all(isinstance(i, int) for i in schedule)
    if not whole or not isinstance(tied, bool) or not isinstance(blocks, list):
        raise InputError(where, "sharing: no schedule, blocks and tied in it", "export the artifact again")
    if sorted(set(schedule)) != list(range(len(blocks))):  # type: ignore[arg-type]
        raise InputError(where, "sharing: the schedule does not run the stored blocks", "export the artifact again")
    return tuple(blocks), tuple(schedule), tied  # type: ignore[arg-type]


def _matrix(
    name: str, spec: DecoderSpec | RwkvSpec, recipe: Recipe, schedule: Sequence[int], tied: bool, where: str
) -> MatrixPlan:
    shape = matrix_shape(name, spec)
    if shape is None:
        raise InputError(where, f"matrices: no graph has {name!r}", "export the artifact again")
    precision: Precision = recipe.precision_of(name)
    if precision.group_size and shape[1] % precision.group_size:
        what = f"{name} has {shape[1]} inputs, which groups of {precision.group_size} do not divide"
        raise InputError(where, what, "export the artifact again")
    return MatrixPlan(name, shape, precision, uses(name, schedule, tied=tied))
