"""The meter: reads an optimizer right after its step and sends the sums of every layer to the host in one array.

Owns which tensors are read and how they reach the host. `watch` decides when to measure, `sums` has the formulas, and
`layer_statistics` derives the statistics. Nothing here synchronises a device. Called on the training thread; results
may be read on any thread.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client_sdk.distributed import Contribution, is_divided_alike, local
from client_sdk.host import TensorCopy
from client_sdk.layers import Layers, size_of
from client_sdk.measurement import HostCopy, Measurement
from client_sdk.optimizers import (
    ELEMENTWISE_TERMS,
    TERM,
    TERMS,
    Kind,
    Moment,
    UpdateRule,
    first_moment,
    has_own_step,
    read_steps,
    read_update_rule,
    second_moment,
    term_table,
)
from client_sdk.protocol import Histograms
from client_sdk.stats import host_table
from client_sdk.stats.entry import Entry, flat
from client_sdk.stats.gradients import GradientReader
from client_sdk.stats.histograms import MAX_HISTOGRAM_LAYERS, HistogramCopy, layer_histograms
from client_sdk.stats.host_table import HOST_KINDS
from client_sdk.stats.kernel_error import KernelError
from client_sdk.stats.layer_statistics import Sums, layer_amounts, statistics_block, statistics_of, totals
from client_sdk.stats.measurement_plan import MeasurementPlan
from client_sdk.stats.moment_sums import COLUMNS as MOMENT_COLUMNS
from client_sdk.stats.moment_sums import MomentEntry, measure_moments
from client_sdk.stats.movement import Refutation, is_rounded, measure_movement
from client_sdk.stats.period_two import LayerCopy, PeriodTwo
from client_sdk.stats.snapshot import Sample, Sampler
from client_sdk.stats.step_extras import Patch, StepExtras, Tensors, Verdict
from client_sdk.stats.sum_table import StartCopy, SumTable, TablesCopy, wide_dtype
from client_sdk.stats.sums import SUM, SUMS, Flags
from client_sdk.warner import Warner


class Meter:
    """Measurement of the layers of one optimizer."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        kind: Kind,
        layers: Layers,
        start_copy: StartCopy = TablesCopy,
        warner: Warner | None = None,
        *,
        sees_movement: bool = True,
    ) -> None:
        """Prepare to measure ``layers`` as ``optimizer``, which is of the given ``kind``, moves them.

        ``start_copy`` sends the sums of each step from their devices to the host. ``warner`` hears once if the fused
        kernel cannot be used. ``sees_movement`` is False if the weights also move outside of the optimizer's step, so
        that Δw is unknown.
        """
        self._kind = kind
        self._warner = warner or Warner()
        self._tries_kernel = True
        self._start_copy = start_copy
        self._index_of = {id(parameter): index for index, parameter in enumerate(layers.parameters)}
        self.layers = layers
        """Layers that are measured."""
        self.has_newcomers = False
        """Whether a parameter has had a gradient that was missing or frozen when the layers were mapped."""
        self.has_partial_gradients = False
        """Whether a gradient was left out because its local part is not that of its parameter (tensor parallelism)."""
        self.histogram_layers: Container[int] | None = None
        """Rows of the layers that have histograms; None stands for all. A part of a layer has none."""
        self.period_two = PeriodTwo(kind, layers)
        """Filter of the gradients of successive steps; `measure` reads it."""
        self._plan: MeasurementPlan | None = None
        self._plan_key: tuple[object, ...] = ()
        self._gradients = GradientReader()
        self._samples: dict[int, Sample] = {}
        self._without_formula: set[int] = set()
        self._verdict = Verdict()
        self._sees_movement = sees_movement
        self._has_own_step = has_own_step(kind, optimizer)
        self._sampler = Sampler(is_suspect=self._has_own_step)
        self._flags: dict[tuple[object, ...], Flags] = {}  # one object for equal flags, which every step compares
        rules = [read_update_rule(kind, optimizer, group) for group in optimizer.param_groups]
        self.statistics = statistics_of(
            rules, is_moved=sees_movement, has_rounding=any(map(is_rounded, layers.parameters))
        )
        """Names of the block's columns."""
        self._prepare_kernel()

    @property
    def is_refuted(self) -> bool:
        """Whether the weights have moved otherwise than the optimizer's rule says."""
        return self._verdict.is_refuted

    @property
    def judged(self) -> int:
        """Number of steps whose movement has been compared with the formula."""
        return self._verdict.judged

    @property
    def refutation(self) -> Refutation | None:
        """Evidence of the first step that refuted the formula."""
        return self._verdict.refutation

    @torch.no_grad()
    def before_step(self, optimizer: torch.optim.Optimizer, *, has_closure: bool = False) -> None:
        """Take what only exists before a step: versions of the gradients, and samples of the weights.

        With ``has_closure`` the step computes its gradients itself, so that those from before it say nothing.
        Call it before every step that `measure` is called after. Without it, what needs these is absent.
        """
        self.period_two.before_step(optimizer)
        present: list[Tensor] = []
        measured: list[Tensor] = []
        others: list[Tensor] = []
        for group in optimizer.param_groups:
            has_formula = self._has_formula(read_update_rule(self._kind, optimizer, group))
            for parameter in group["params"]:
                if parameter.grad is None or id(parameter) not in self.layers.row_of:
                    continue
                if not is_divided_alike(parameter, parameter.grad):
                    continue
                present.append(parameter)
                if parameter.grad.is_sparse:
                    continue
                if has_formula and id(parameter) not in self._without_formula and not is_rounded(parameter):
                    others.append(parameter)
                else:
                    measured.append(parameter)
        self._gradients.before_step([] if has_closure else present)
        self._samples = self._sampler.take(measured, others, self._verdict.judged) if self._sees_movement else {}

    def _has_formula(self, rule: UpdateRule) -> bool:
        return rule.is_exact and not self.is_refuted

    @torch.no_grad()
    def measure(self, optimizer: torch.optim.Optimizer, *, histograms: bool) -> StepCopy | None:
        """Return the sums of this step on their way to the host, or None if no watched parameter has a gradient."""
        entries: list[Entry] = []
        sparse: list[SparseEntry] = []
        term_tables: list[NDArray[np.float64] | Tensor] = []
        scales: list[NDArray[np.bool_]] = []
        tensors, moments, patches = Tensors(), list[MomentEntry](), list[Patch]()
        samples: dict[int, Sample] = {}
        for group in optimizer.param_groups:
            rule = read_update_rule(self._kind, optimizer, group)
            states: list[Mapping[str, Any]] = []
            for parameter in group["params"]:
                row = self.layers.row_of.get(id(parameter))
                if parameter.grad is None:
                    continue
                if row is None:
                    self.has_newcomers = self.has_newcomers or id(parameter) not in self.layers.known
                    continue
                if not is_divided_alike(parameter, parameter.grad):
                    self.has_partial_gradients = True
                    continue
                if parameter.grad.is_sparse:
                    self._warner.warn(
                        "sparse_gradients",
                        f"{self.layers.names[row]} and perhaps others have sparse gradients: of these layers only the "
                        "gradient is measured. Pass sparse=False to the embedding to measure its weights too",
                    )
                    if parameter.device.type == "cpu" or parameter.grad.is_coalesced():
                        index = self._index_of[id(parameter)]
                        sparse.append(SparseEntry(parameter.grad.coalesce().values(), row, index))
                    continue
                state = optimizer.state.get(parameter, {})
                position = len(entries)
                entry, found = self._entry(rule, parameter, state, bool(group.get("fused")), tensors)
                entries.append(entry)
                states.append(state)
                if found is not None:
                    moments.append(MomentEntry(position, *found, rule.intake))
                if id(parameter) in self._samples:
                    samples[position] = self._samples[id(parameter)]
                sums = self._gradients.sums_of(parameter)
                if sums is not None:
                    patches.append(Patch([position], [SUM["gg"], SUM["nonfinite"]], sums.unsqueeze(0)))
            if states:
                term_tables.append(term_table(rule, read_steps(rule, states), states))
                scales.append(np.full(len(states), rule.first is not None))
        if not entries and not sparse:
            return None
        terms = _Terms(term_tables, entries)
        tables = _with_sparse(self._tables(entries, terms), sparse, len(entries))
        copies: list[HistogramCopy] = []
        if histograms and len(self.layers.names) <= MAX_HISTOGRAM_LAYERS:
            copies = layer_histograms(entries, terms.elementwise, self.layers.sizes, self.histogram_layers)
        for device, members in _by_device(moments, entries).items():
            values = measure_moments(entries, members, terms.elementwise[device])
            patches.append(Patch([found.position for found in members], MOMENT_COLUMNS, values))
        movements = measure_movement(entries, samples, terms.whole()) if samples else []
        self._samples = {}
        self._gradients.release()
        return StepCopy(
            entries=entries, sparse=sparse, copy=self._start_copy(tables), terms=terms,
            by_momentum=np.concatenate(scales) if scales else np.zeros(0, np.bool_),
            found_inf=getattr(optimizer, "found_inf", None),
            histograms=copies, layers=self.layers, statistics=self.statistics,
            extras=StepExtras(
                tensors, movements, patches, self._verdict, [self.layers.names[entry.row] for entry in entries]
            ),
            period_two=self.period_two.layers(),
        )  # fmt: skip

    def _tables(self, entries: Sequence[Entry], terms: _Terms) -> list[SumTable]:
        key = tuple((id(entry.parameter), entry.parameter.numel(), entry.flags) for entry in entries)
        try:
            if self._plan is None or key != self._plan_key or not self._plan.fits(entries):
                self._plan, self._plan_key = MeasurementPlan(entries, self._tries_kernel), key
            return self._plan.measure(entries, terms.elementwise)
        except KernelError as error:
            self._give_up_kernel(error)
            self._plan, self._plan_key = MeasurementPlan(entries, tries_kernel=False), key
            return self._plan.measure(entries, terms.elementwise)

    def _prepare_kernel(self) -> None:
        """Compile the kernel of the CPU now rather than at the first step, if it is there and needed."""
        if host_table.is_available() and any(
            parameter.device.type == "cpu" and parameter.dtype in HOST_KINDS for parameter in self.layers.parameters
        ):
            try:
                host_table.prepare()
            except KernelError as error:
                self._give_up_kernel(error)

    def _give_up_kernel(self, error: KernelError) -> None:
        self._tries_kernel = False
        self._warner.warn(
            "kernel", f"layer statistics are measured by separate torch operations, which takes longer, because {error}"
        )

    def _entry(
        self,
        rule: UpdateRule,
        parameter: Tensor,
        state: Mapping[str, Any],
        is_fused: bool,
        tensors: Tensors,
    ) -> tuple[Entry, tuple[Moment | None, Moment | None] | None]:
        """Return what is measured of one tensor, and its moments if they are not tensors in its shape."""
        grad = parameter.grad
        assert grad is not None
        held, grad_held = local(parameter), local(grad)
        first, second = first_moment(rule, state, held), second_moment(rule, state, held)
        if self.is_refuted and self._has_own_step:
            first = second = None  # a rule of its own may keep anything under these names
        dense_first, dense_second = (moment if isinstance(moment, Tensor) else None for moment in (first, second))
        is_complete = (dense_first is not None) == (rule.first is not None) and (dense_second is not None) == (
            rule.second is not None
        )
        updates = self._has_formula(rule) and is_complete
        if updates:
            self._without_formula.discard(id(parameter))
        else:
            self._without_formula.add(id(parameter))
        # A fused kernel leaves the unscaled gradient behind, whatever the version says.
        is_readable = is_fused or self._gradients.is_unchanged(parameter)
        copy = self._gradients.copy_of(parameter)
        folded = 0.0
        if copy is not None:
            grad_held, is_readable = copy, True
        elif updates and rule.nesterov and not is_readable:
            folded, is_readable = rule.decay, True
        elif not is_readable:
            self._gradients.is_overwritten = True
        tensors.add(
            rule, state, formula=updates, readable=is_readable, tolerance=_tolerance(dense_first, dense_second),
            rounded=is_rounded(held), trusted=not self.is_refuted,
        )  # fmt: skip
        arguments = (
            dense_first is not None, dense_second is not None, rule.squared, rule.uses_gradient, rule.divided,
            rule.coupled != 0, rule.decoupled != 0, rule.sign < 0, rule.intake, folded, updates,
        )  # fmt: skip
        flags = self._flags.get(arguments)
        if flags is None:
            flags = self._flags[arguments] = Flags(
                updates=updates,
                first=dense_first is not None,
                second=dense_second is not None,
                squared=rule.squared,
                uses_gradient=rule.uses_gradient,
                divided=rule.divided,
                coupled=rule.coupled != 0,
                decoupled=rule.decoupled != 0,
                negated=rule.sign < 0,
                intake=rule.intake,
                folded=folded,
            )
        row, index = self.layers.row_of[id(parameter)], self._index_of[id(parameter)]
        entry = Entry(held, grad_held, dense_first, dense_second, flags, row, index)
        made_first = None if isinstance(first, Tensor) else first
        made_second = None if isinstance(second, Tensor) else second
        return entry, None if made_first is made_second is None else (made_first, made_second)


class SparseEntry(NamedTuple):
    """A sparse gradient to measure at this step."""

    values: Tensor
    """Stored values of the gradient."""
    row: int
    """Row of the tensor's layer in the block."""
    parameter_index: int
    """Position of the parameter in `Layers.parameters`."""


class StepCopy:
    """Measurements of one step on their way to the host. Reading them waits for the copy if it is still under way."""

    def __init__(
        self,
        *,
        entries: Sequence[Entry],
        sparse: Sequence[SparseEntry],
        copy: HostCopy,
        terms: _Terms,
        by_momentum: NDArray[np.bool_],
        found_inf: Tensor | None,
        histograms: Sequence[HistogramCopy],
        layers: Layers,
        statistics: tuple[str, ...],
        extras: StepExtras,
        period_two: LayerCopy | None,
    ) -> None:
        self._extras = extras
        self._period_two = period_two
        self._count = len(entries)
        self._terms = terms
        self._by_momentum = by_momentum
        self._copy = copy
        self._layers = layers
        self._statistics = statistics
        self._histograms = histograms
        self._rows = np.array([entry.row for entry in entries] + [entry.row for entry in sparse], np.intp)
        self._parameters = np.array(
            [entry.parameter_index for entry in entries] + [entry.parameter_index for entry in sparse], np.intp
        )
        self._sizes = np.array([size_of(entry.parameter) for entry in entries] + [np.nan] * len(sparse))
        self._found_inf = None if found_inf is None else TensorCopy(found_inf.detach().clone())

    def ready(self) -> bool:
        """Return whether all measurements have reached the host. Never synchronises a device."""
        found = (self._copy, self._found_inf, self._terms.copy, self._period_two, *self._histograms)
        copies = [copy for copy in found if copy]
        return self._extras.ready() and all(copy.ready() for copy in copies)

    @cached_property
    def sums(self) -> Sums:
        """Sums of every measured tensor."""
        values = self._copy.array()
        # A fused optimizer under GradScaler may skip the step inside its kernel, so that u was never applied.
        is_skipped = self._found_inf is not None and bool(self._found_inf.array().any())
        moved, is_measured, follows_formula = self._extras.apply(values, is_skipped=is_skipped)
        terms = np.full((len(self._rows), len(TERMS)), np.nan)
        terms[: self._count] = self._terms.on_host()
        scale = np.full(len(self._rows), np.nan)
        scale[: self._count] = np.where(
            self._by_momentum, terms[: self._count, TERM["momentum"]], terms[: self._count, TERM["direct"]]
        )
        period_two = np.full((len(self._rows), 2), np.nan)
        if self._period_two is not None:
            period_two = self._period_two.squares(self._parameters)
        return Sums(
            values=values, terms=terms, scale=scale, sizes=self._sizes, rows=self._rows, moved=moved,
            is_measured=is_measured, follows_formula=follows_formula, period_two=period_two,
        )  # fmt: skip

    @cached_property
    def amounts(self) -> NDArray[np.float64]:
        """Amounts of every layer, [layers, len(AMOUNTS)]."""
        return layer_amounts(self.sums, len(self._layers.names))

    def contribution(self, counts: NDArray[np.bool_]) -> Contribution:
        """Return what this rank contributes to a sum over several ranks.

        ``counts`` says which of `Layers.parameters` this rank contributes. A part without coordinates adds nothing.
        """
        sums = self.sums
        kept = counts[self._parameters] & (sums.sizes != 0)
        squares = np.full(len(counts), np.nan)
        squares[self._parameters] = np.where(sums.sizes != 0, sums.values[:, SUM["gg"]], 0.0)
        return Contribution(amounts=layer_amounts(sums, len(self._layers.names), kept), squares=squares)

    def histograms(self) -> tuple[Histograms, ...]:
        """Return the histograms, after waiting for their copies if necessary."""
        return tuple(histogram.result() for histogram in self._histograms) if self.sums.follows_formula else ()

    @cached_property
    def totals(self) -> dict[str, float]:
        """Totals over all measured tensors; see `layer_statistics.totals`."""
        return totals(self.amounts)

    @property
    def knows_norms(self) -> bool:
        """Whether the gradient norms of all tensors are known."""
        return self._extras.knows_norms

    def measurement(self) -> Measurement:
        """Return the block [layers, statistics], the histograms and the scalar `grad_norm`."""
        return Measurement(
            scalars={"grad_norm": self.totals["grad_norm"]} if self.knows_norms else {},
            block=statistics_block(self.amounts, self._statistics),
            histograms=self.histograms(),
        )


class _Terms:
    """The term table of all entries, [P, len(TERMS)], kept on the host or on its way there from a device."""

    def __init__(self, tables: Sequence[NDArray[np.float64] | Tensor], entries: Sequence[Entry]) -> None:
        devices = {entry.parameter.device for entry in entries}
        home = next((table.device for table in tables if isinstance(table, Tensor)), None)
        self.copy: TensorCopy | None = None
        self._table: NDArray[np.float64] | None = None
        if home is None:
            self._table = np.concatenate(tables) if tables else np.zeros((0, len(TERMS)))
            table = torch.from_numpy(self._table)
        else:
            table = torch.cat([torch.as_tensor(part).to(home, non_blocking=True) for part in tables])
            self.copy = TensorCopy(table)
        self._home = table
        self._devices = devices
        leading = table[:, : len(ELEMENTWISE_TERMS)]
        self.elementwise = {
            device: leading.to(torch.float32 if device.type == "mps" else torch.float64).to(device, non_blocking=True)
            for device in devices
        }

    def whole(self) -> dict[torch.device, Tensor]:
        """Return all `TERMS`, [P, len(TERMS)], on each device."""
        return {device: self._home.to(wide_dtype(device)).to(device, non_blocking=True) for device in self._devices}

    def on_host(self) -> NDArray[np.float64]:
        """Return the table on the host, [P, len(TERMS)], after waiting for its copy if necessary."""
        if self._table is not None:
            return self._table
        assert self.copy is not None
        return self.copy.array()


def _tolerance(*state: Tensor | None) -> float:
    """Return the relative error of a formula that is accepted with these moments."""
    return max([1e-3, *(8.0 * torch.finfo(moment.real.dtype).eps for moment in state if moment is not None)])


def _by_device(moments: Sequence[MomentEntry], entries: Sequence[Entry]) -> dict[torch.device, list[MomentEntry]]:
    found: dict[torch.device, list[MomentEntry]] = {}
    for moment in moments:
        found.setdefault(entries[moment.position].parameter.device, []).append(moment)
    return found


def _with_sparse(tables: Sequence[SumTable], sparse: Sequence[SparseEntry], first: int) -> list[SumTable]:
    """Return ``tables`` with the rows of sparse gradients, whose positions in the step begin at ``first``."""
    extended = {table.values.device: table for table in tables}
    by_device: dict[torch.device, list[int]] = {}
    for at, entry in enumerate(sparse):
        by_device.setdefault(entry.values.device, []).append(at)
    for device, members in by_device.items():
        table = extended.get(device)
        added = [_sparse_sums(sparse[at].values) for at in members]
        positions, indices = [first + at for at in members], [sparse[at].parameter_index for at in members]
        if table is not None:
            added.insert(0, table.values)
            positions, indices = [*table.positions, *positions], [*table.parameters, *indices]
        extended[device] = SumTable(
            positions=np.array(positions, np.intp), parameters=np.array(indices, np.intp), values=torch.cat(added)
        )
    return list(extended.values())


def _sparse_sums(values: Tensor) -> Tensor:
    """Return what the stored values of a sparse gradient give, [1, len(SUMS)]: Σ g² and the count of non-finite values.

    All other sums are NaN.
    """
    wide = wide_dtype(values.device)
    g = flat(values).to(wide)
    sums = torch.full((1, len(SUMS)), torch.nan, device=values.device, dtype=wide)
    sums[0, SUM["gg"]] = torch.dot(g, g)
    sums[0, SUM["nonfinite"]] = torch.count_nonzero(g - g)
    return sums
