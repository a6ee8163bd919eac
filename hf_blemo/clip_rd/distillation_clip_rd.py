"""Student, teacher and loss of CLIP-RD as one module to train."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from .losses_clip_rd import MAXIMAL_LOG_SCALE, CLIPRDLoss, CLIPRDLossOutput, check_weights, computing_dtype

_OWN = ("pixel_values", "input_ids", "attention_mask")
_IDS = ("image_ids", "text_ids")
_OF_TEACHERS = (*_OWN, "image_embeds", "text_embeds")
INPUTS = (*_OWN, *(f"teacher_{name}" for name in _OF_TEACHERS), "text_outputs", *_IDS)
Schedule = Sequence[tuple[int, float]]

logger = logging.get_logger(__name__)


def features_of(output: Any) -> torch.Tensor:
    """Returns the embeddings (n, d) in the output of a CLIP-like model's feature methods, tensor or model output."""
    return output if isinstance(output, torch.Tensor) else output.pooler_output


def _scale_of(model: Any) -> torch.Tensor:
    """A CLIP's scale, exponentiated."""
    return _at_least_float32(model.logit_scale.detach()).exp()


def teacher_prefix(number: int) -> str:
    """Beginning of the names of a teacher's inputs: `teacher_`, and of further ones `teacher_2_`, `teacher_3_`, ..."""
    return f"teacher_{number + 1}_" if number else "teacher_"


def _at_least_float32(values: torch.Tensor) -> torch.Tensor:
    return values.to(computing_dtype(values))


class CLIPRDDistiller(nn.Module):
    """Trains a student CLIP to relate images and texts as a teacher does.

    The teacher is not a registered submodule: it moves between devices with the rest, but appears in no `state_dict`,
    `parameters()` or checkpoint, and stays in evaluation mode without gradients. Everything that training changes or
    a resumed run needs (student, scales, projections, step) is inside.

    Args:
        student: a [`CLIPRDModel`] or another model with `get_image_features`, `get_text_features` and `logit_scale`.
        teacher: any CLIP-like model with the same three, or several; None if batches bring stored teacher embeddings,
            or if the loss is `task` alone (no distillation).
        loss: its widths must be those of the models' embeddings.
        teacher_logit_scale: the teacher's CLIP scale, exponentiated; that of `teacher` by default, needed without it.
            A sequence for several. Theirs are part of the `state_dict`, as the buffer `teacher_scales`, since
            [`set_teacher_scales`] may choose others.
        weight_schedule: term -> [(step, weight), ...] by rising step, linear in between and constant outside; terms
            that are left out keep the loss's weight. The step is set by [`set_step`].
        images_alone: whether there are no captions. The teacher's embedding of each image then stands for its text,
            on both sides: `task` and `vrd_image` contrast the student's images with the teacher's, `hrd` matches
            relations between pictures, `fd` distils features. The student's embeddings must be as wide as the
            teacher's, whose text tower serves the student.

    Raises:
        ValueError: neither a teacher nor its scale, another number of teachers than the loss has widths, several with
            images alone, or a schedule that does not rise or names an unknown term.

    Source: arXiv 2603.25383.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | Sequence[nn.Module] | None,
        loss: CLIPRDLoss,
        teacher_logit_scale: float | Sequence[float] | None = None,
        weight_schedule: Mapping[str, Schedule] | None = None,
        images_alone: bool = False,
    ):
        super().__init__()
        count = len(loss.teacher_dims)
        given = (None,) * count if teacher is None else teacher if isinstance(teacher, list | tuple) else (teacher,)
        scales = teacher_logit_scale if isinstance(teacher_logit_scale, list | tuple) else None
        if len(given) != count or (scales is not None and len(scales) != count):
            found = len(given) if len(given) != count or scales is None else len(scales)
            raise ValueError(f"expected as many teachers and scales as the loss has widths, {count}, found {found}")
        if images_alone and count > 1:
            raise ValueError(f"images_alone: expected one teacher, found {count}")
        if images_alone and loss.student_dim != loss.teacher_dim:
            raise ValueError(
                f"images_alone: expected a student as wide as its teacher, found {loss.student_dim} and "
                f"{loss.teacher_dim}"
            )
        self.images_alone = images_alone
        self.student: Any
        self.step: torch.Tensor
        self.weight_schedule = {name: _checked(name, points) for name, points in (weight_schedule or {}).items()}
        later = any(weight for name, points in self.weight_schedule.items() if name != "task" for _, weight in points)
        if teacher is None and teacher_logit_scale is None and (loss.needs_teacher or later):
            raise ValueError("expected a teacher or, with stored teacher embeddings, its teacher_logit_scale")
        self.student = student
        self.loss = loss
        # A tuple hides them from the registration of submodules.
        self._teachers: tuple[Any, ...] = tuple(given)
        for model in self._running:
            if {id(value) for value in model.parameters()} & {id(value) for value in student.parameters()}:
                raise ValueError("teacher and student share parameters; expected two models")
            model.eval().requires_grad_(False)
        self.teacher_logit_scale = teacher_logit_scale
        self.teacher_scales: torch.Tensor | None
        own = [1.0 if model is None else _scale_of(model).item() for model in self._teachers]
        several = torch.tensor(own if scales is None else scales) if count > 1 else None
        self.register_buffer("teacher_scales", several)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_load_state_dict_post_hook(_resume_schedule)
        # A model's identity -> its two feature methods, compiled.
        self._compiled: dict[int, tuple[Callable, Callable]] = {}
        self.set_step(0)

    @property
    def teacher(self) -> Any:
        """The teacher, in evaluation mode, or None; of several, the first."""
        return self._teachers[0]

    @property
    def _running(self) -> list[Any]:
        """The teachers that run beside the student."""
        return [model for model in self._teachers if model is not None]

    def set_teacher_scales(self, scales: Sequence[float]) -> None:
        """Sets the scales of several teachers, exponentiated."""
        assert self.teacher_scales is not None
        with torch.no_grad():
            self.teacher_scales.copy_(torch.as_tensor(scales))

    @property
    def config(self) -> Any:
        """The student's config, which trainers ask for."""
        return getattr(self.student, "config", None)

    def _apply(self, fn: Callable, recurse: bool = True) -> "CLIPRDDistiller":
        for model in self._running:
            model._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def compile_towers(self, **options: Any) -> None:
        """Compiles how student and teacher embed images and texts; the first steps take longer for it.

        Where the compiler is missing or fails, a warning says so once and the towers run as they are. The models
        themselves, and what is saved of them, do not change.

        Args:
            options: of `torch.compile`.
        """
        for model in (self.student, *self._running):
            self._compiled[id(model)] = (
                _Compiled(model.get_image_features, options),
                _Compiled(model.get_text_features, options),
            )

    def activation_checkpointing_enable(self, **options: Any) -> None:
        """Recomputes the student's activations in the backward pass; options as `PreTrainedModel` takes them."""
        if hasattr(self.student, "activation_checkpointing_enable"):
            self.student.activation_checkpointing_enable(**options)
        else:
            # The name before transformers 5.22.
            kwargs = options.get("activation_checkpointing_kwargs")
            self.student.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict | None = None) -> None:
        """The earlier name of [`activation_checkpointing_enable`], which older trainers call."""
        self.activation_checkpointing_enable(activation_checkpointing_kwargs=gradient_checkpointing_kwargs)

    def set_step(self, step: int) -> None:
        """Sets the number of steps taken, which the weight schedule follows; part of the `state_dict`."""
        with torch.no_grad():
            self.step.fill_(step)
        scheduled = {name: _interpolated(points, step) for name, points in self.weight_schedule.items()}
        self.loss.set_weights({**self.loss.weights, **scheduled})

    @torch.no_grad()
    def clamp_scales(self) -> None:
        """Keeps the student's logit scale, and the loss's exponentiated ones, between 0 and ln 100.

        `forward` does this before every training step; call it once more after the last.
        """
        self.student.logit_scale.clamp_(0, MAXIMAL_LOG_SCALE)
        self.loss.clamp_scales()

    def forward(
        self,
        batch: Mapping[str, Any] | None = None,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        teacher_pixel_values: torch.Tensor | None = None,
        teacher_input_ids: torch.Tensor | None = None,
        teacher_attention_mask: torch.Tensor | None = None,
        teacher_image_embeds: torch.Tensor | None = None,
        teacher_text_embeds: torch.Tensor | None = None,
        text_outputs: torch.Tensor | None = None,
        image_ids: torch.Tensor | None = None,
        text_ids: torch.Tensor | None = None,
        cached_gradients: "_CachedGradients | None" = None,
        return_loss: bool = True,
        **more: torch.Tensor | None,
    ) -> Any:
        """Computes the loss of this process's pairs among those of all processes.

        Args:
            batch: the other arguments as a mapping.
            pixel_values: (n, 3, H, W), the student's images.
            input_ids, attention_mask: (n, L), the student's captions; none with images alone.
            teacher_pixel_values: (n, 3, H', W'), the same images as the teacher takes them; the student's by default.
            teacher_input_ids, teacher_attention_mask: (n, L'), the same captions in the teacher's tokens; the
                student's by default.
            teacher_image_embeds, teacher_text_embeds: (n, d), stored embeddings; the teacher runs for what has none.
            text_outputs: (n, w), what the student's text tower, frozen, made of the captions before; with
                `teacher_text_embeds`, neither model reads them again.
            image_ids, text_ids: (n,) integers; pairs with equal ones are no negatives of each other
                ([`CLIPRDLoss.forward`]).
            cached_gradients: of [`cached_backward`].
            return_loss: False returns the embeddings of student and teacher instead.
            more: the same inputs of further teachers, `teacher_2_pixel_values` and so on.

        Returns:
            [`CLIPRDLossOutput`]. Without `return_loss` the four embeddings, (n, d_s) and (n, d), two more for each
            further teacher; with `cached_gradients` a scalar whose gradient is the loss's.

        Raises:
            ValueError: inputs are missing, or [`CLIPRDLoss`] refuses them. If a process fails before the loss, the
                others raise as well instead of waiting for it.
        """
        values = (
            pixel_values,
            input_ids,
            attention_mask,
            teacher_pixel_values,
            teacher_input_ids,
            teacher_attention_mask,
            teacher_image_embeds,
            teacher_text_embeds,
            text_outputs,
            image_ids,
            text_ids,
        )
        given = {**dict(zip(INPUTS, values, strict=True)), **more, **(batch or {})}
        if cached_gradients is not None or not return_loss:
            return self._embed(given, cached_gradients)
        try:
            embeddings = self._embed(given)
        except Exception:
            self.loss.report_failure(self.step.device)
            raise
        return self._terms(embeddings, given)

    def _embed(self, given: Mapping[str, Any], cached_gradients: "_CachedGradients | None" = None) -> Any:
        """Returns the embeddings of student and teachers, or the surrogate of cached gradients."""
        further = [teacher_prefix(number) for number in range(1, len(self._teachers))]
        names = [*INPUTS, *(f"{prefix}{name}" for prefix in further for name in _OF_TEACHERS)]
        inputs: dict[str, Any] = dict.fromkeys(names)
        for name, value in given.items():
            if name not in inputs:
                raise ValueError(f"unknown input {name!r}: expected some of {', '.join(inputs)}")
            inputs[name] = value
        given_texts = self.images_alone or inputs["text_outputs"] is not None
        for name in ("pixel_values",) if given_texts else ("pixel_values", "input_ids"):
            if inputs[name] is None:
                raise ValueError(f"the batch has no {name}")
        if self.training:
            self.clamp_scales()
        if self.images_alone:
            image, targets = self._images(self.student, inputs["pixel_values"]), self._teacher_images(inputs)
            if cached_gradients is not None:
                return cached_gradients.surrogate(image, targets, self._loss_parameters())
            return image, targets, targets, targets
        image, text = self._embed_student(inputs)
        if cached_gradients is not None:
            return cached_gradients.surrogate(image, text, self._loss_parameters())
        taught = [self._embed_teacher(inputs, number) for number in range(len(self._teachers))]
        return image, text, *(values for pair in taught for values in pair)

    def _terms(self, embeddings: Sequence[torch.Tensor | None], ids: Mapping[str, Any]) -> CLIPRDLossOutput:
        """The loss of the embeddings; `ids` may hold more than the ids."""
        image, text = embeddings[:2]
        taught: Any = embeddings[2:]
        scale: Any = self.teacher_logit_scale
        if self.teacher_scales is not None:
            taught, scale = (list(taught[::2]), list(taught[1::2])), self.teacher_scales.unbind()
        elif scale is None and self.teacher is not None:
            scale = _scale_of(self.teacher)
        student_scale = _at_least_float32(self.student.logit_scale).exp()
        return self.loss(image, text, *taught, student_scale, scale, **{name: ids.get(name) for name in _IDS})

    def _loss_parameters(self) -> list[nn.Parameter]:
        """Returns the parameters that the loss trains beside the towers."""
        every = [self.student.logit_scale, *self.loss.parameters()]
        return [parameter for parameter in every if parameter.requires_grad]

    def _embed_student(self, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        image, made = self._images(self.student, inputs["pixel_values"]), inputs["text_outputs"]
        if made is not None:
            return image, self.student.text_projection(made)
        return image, self._texts(self.student, inputs["input_ids"], inputs["attention_mask"])

    def _images(self, model: Any, pixel_values: torch.Tensor) -> torch.Tensor:
        embed = self._compiled.get(id(model), (model.get_image_features,))[0]
        return features_of(embed(pixel_values=pixel_values))

    def _texts(self, model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        embed = self._compiled.get(id(model), (None, model.get_text_features))[1]
        return features_of(embed(input_ids=input_ids, attention_mask=attention_mask))

    @torch.no_grad()
    def _teacher_images(self, inputs: Mapping[str, Any], number: int = 0) -> torch.Tensor:
        prefix, model = teacher_prefix(number), self._teachers[number]
        if inputs[f"{prefix}image_embeds"] is not None:
            return inputs[f"{prefix}image_embeds"]
        if model is None:
            raise ValueError(f"no teacher: the batch needs {prefix}image_embeds")
        own: Any = inputs[f"{prefix}pixel_values"]
        return self._images(model, inputs["pixel_values"] if own is None else own)

    @torch.no_grad()
    def _embed_teacher(
        self, inputs: Mapping[str, Any], number: int
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        if not self.loss.needs_teacher:
            return None, None
        prefix, model = teacher_prefix(number), self._teachers[number]
        own = {name: inputs[f"{prefix}{name}"] for name in _OF_TEACHERS}
        if model is None and (own["image_embeds"] is None or own["text_embeds"] is None):
            for one, other in (("image_embeds", "text_embeds"), ("text_embeds", "image_embeds")):
                if own[one] is not None:
                    raise ValueError(f"the batch has {prefix}{one} without {prefix}{other}")
            raise ValueError(f"no teacher: the batch needs {prefix}image_embeds and {prefix}text_embeds")
        text = own["text_embeds"]
        if text is None:
            if own["attention_mask"] is not None and own["input_ids"] is None:
                raise ValueError(f"the batch has {prefix}attention_mask without {prefix}input_ids")
            # A mask belongs to its tokens.
            tokens = inputs if own["input_ids"] is None else own
            text = self._texts(model, tokens["input_ids"], tokens["attention_mask"])
        return self._teacher_images(inputs, number), text


class _Compiled:
    """A compiled function, or the function itself once the compiler has failed."""

    def __init__(self, function: Callable, options: Mapping[str, Any]):
        self.function = function
        self.compiled: Callable | None = torch.compile(function, **options)

    def __call__(self, **inputs: Any) -> Any:
        if self.compiled is not None:
            try:
                return self.compiled(**inputs)
            except torch._dynamo.exc.TorchDynamoException as error:
                reason = " ".join(str(error).split("\n\n")[0].split())
                logger.warning_once(f"the towers run uncompiled: {reason[:200]}")
                self.compiled = None
        return self.function(**inputs)


def _resume_schedule(distiller: CLIPRDDistiller, _: Any) -> None:
    distiller.set_step(int(distiller.step))


def _checked(name: str, points: Schedule) -> list[tuple[int, float]]:
    check_weights({name: 0.0})
    steps = [int(step) for step, _ in points]
    if not steps or steps != sorted(set(steps)):
        raise ValueError(f"weight_schedule: {name} needs points of rising steps, found {list(points)}")
    for _, weight in points:
        check_weights({name: float(weight)})
    return [(int(step), float(weight)) for step, weight in points]


def _interpolated(points: Schedule, step: int) -> float:
    if step <= points[0][0]:
        return points[0][1]
    for (start, first), (end, last) in zip(points, points[1:], strict=False):
        if step < end:
            return first + (last - first) * (step - start) / (end - start)
    return points[-1][1]


class _CachedGradients:
    """The loss's gradients for the embeddings (n, d_s) of a chunk and, with the last chunk, for its own parameters."""

    def __init__(self, image: torch.Tensor, text: torch.Tensor, parameters: Sequence[torch.Tensor] | None):
        self.image, self.text, self.parameters = image, text, parameters

    def surrogate(self, image: torch.Tensor, text: torch.Tensor, parameters: Sequence[nn.Parameter]) -> torch.Tensor:
        """Returns a scalar with the gradient of the loss."""
        total = (_at_least_float32(image) * self.image).sum() + (_at_least_float32(text) * self.text).sum()
        # Every parameter takes part in every chunk: gradient synchronisation waits for all of them.
        gradients = self.parameters or [torch.zeros_like(parameter) for parameter in parameters]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            total = total + (_at_least_float32(parameter) * _at_least_float32(gradient)).sum()
        return total


def cached_backward(
    model: nn.Module,
    batch: Mapping[str, torch.Tensor],
    chunk_size: int,
    backward: Callable[[torch.Tensor], None] | None = None,
) -> CLIPRDLossOutput:
    """Accumulates the gradients of a batch too large for memory, with the negatives of all processes' whole batches.

    The towers run twice over the chunks: first without gradients, to collect the embeddings that the loss and its
    gradients are computed from; then with gradients, fed with those. The result equals that of one large batch unless
    the student has batch statistics (batch normalisation sees chunks, and counts each of them twice).

    Args:
        model: a [`CLIPRDDistiller`], wrapped for distributed training or not.
        batch: its inputs; every tensor's first axis is the pair.
        chunk_size: pairs at once.
        backward: computes gradients of a scalar; `accelerator.backward`, for instance.

    Returns:
        The terms of the whole batch, detached.

    Raises:
        ValueError: a chunk size below 1, inputs of different lengths, or [`CLIPRDLoss`] refuses them.

    Source: Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", RepL4NLP 2021
    (GradCache).
    """
    distiller = _unwrapped(model)
    states, parts = [], []
    try:
        chunks, starts = _chunks(batch, chunk_size)
        with torch.no_grad():
            for chunk in chunks:
                states.append(_RandomState())
                parts.append(distiller(chunk, return_loss=False))
    except Exception:
        distiller.loss.report_failure(distiller.step.device)
        raise
    # The teacher's two are None if no term reads them.
    embeddings: list[Any] = [None if column[0] is None else torch.cat(column) for column in zip(*parts, strict=True)]
    student = [_at_least_float32(values).requires_grad_() for values in embeddings[:2]]
    parameters = distiller._loss_parameters()
    with torch.enable_grad():
        terms = distiller._terms([*student, *embeddings[2:]], batch)
    assert terms.loss is not None
    found = torch.autograd.grad(terms.loss, [*student, *parameters], allow_unused=True, materialize_grads=True)
    after = _RandomState()
    for number, (start, chunk, state) in enumerate(zip(starts, chunks, states, strict=True)):
        last = number == len(chunks) - 1
        rows = slice(start, start + chunk_size)
        gradients = _CachedGradients(found[0][rows], found[1][rows], found[2:] if last else None)
        quiet = getattr(model, "no_sync", None)
        with nullcontext() if last or quiet is None else quiet():
            # The same dropout as in the first pass.
            state.restore()
            surrogate = model(chunk, cached_gradients=gradients)
            (backward or torch.Tensor.backward)(surrogate)
    after.restore()
    return CLIPRDLossOutput(**{name: value.detach() for name, value in terms.items()})


def _chunks(batch: Mapping[str, Any], chunk_size: int) -> tuple[list[dict[str, torch.Tensor]], list[int]]:
    """Splits a batch into chunks, at least one even if it is empty; returns them and their first rows."""
    given = {name: value for name, value in batch.items() if value is not None}
    lengths = {name: len(value) for name, value in given.items()}
    if chunk_size < 1 or len(set(lengths.values())) != 1:
        raise ValueError(
            f"expected chunk_size of at least 1 and inputs of one length, found {chunk_size} and {lengths}"
        )
    starts = list(range(0, next(iter(lengths.values())), chunk_size)) or [0]
    return [{name: value[start : start + chunk_size] for name, value in given.items()} for start in starts], starts


def _unwrapped(model: nn.Module) -> CLIPRDDistiller:
    while not isinstance(model, CLIPRDDistiller):
        inner = getattr(model, "module", None) or getattr(model, "_orig_mod", None)
        if inner is None:
            raise ValueError(f"expected a CLIPRDDistiller, found {type(model).__name__}")
        model = inner
    return model


class _RandomState:
    """The random state of the CPU and, once in use, of CUDA devices."""

    def __init__(self):
        self.cpu = torch.get_rng_state()
        self.cuda = (
            torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
        )

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state_all(self.cuda)
