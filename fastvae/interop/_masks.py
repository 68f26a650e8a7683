"""Degrees of a masked network's units, found from its masks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..reference.masked_linear import mask_of

__all__ = ["degrees_of"]


def degrees_of(
    masks: Sequence[Tensor], names: Sequence[str], features: int, one_hidden: bool
) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """The order of the features, and the degrees of each hidden layer, that reproduce the masks exactly.

    Every mask entry is an inequality: a connection from i to o asks for d_i <= d_o, none for d_i >= d_o + 1, with
    d = place + 1 for inputs and d = place for outputs. The search tightens bounds until all hold. If several features
    could have the same place, they take places one after another, the one with the lowest upper bound first.

    Args:
        masks: of each layer, ``(out, in)``, bool, without columns of a context; outputs of the last are blocked.
        names: of the layers, for errors.
        features: number D of features.
        one_hidden: whether all hidden layers have the same degrees, as residual blocks ask for.

    Raises:
        ValueError: no degrees are found; the error names a layer.
    """
    lower = _Bounds(masks, features, one_hidden)
    lower.start_behind_inputs()
    lower.tighten()
    if len(set(lower.places.tolist())) < features:
        upper = _Bounds(masks, features, one_hidden, upper=True)
        upper.tighten()
        waiting = torch.ones(features, dtype=torch.bool)
        for place in range(features):
            ready = (waiting & (lower.places <= place)).nonzero().squeeze(-1)
            if not len(ready):
                break
            waiting[ready[upper.places[ready].argmin()]] = False
            lower.places = torch.where(waiting, lower.places.clamp(min=place + 1), lower.places)
            lower.tighten()
    units = [lower.places + 1, *lower.hidden, lower.places.repeat(len(masks[-1]) // features)]
    wrong = [
        name
        for index, (name, mask) in enumerate(zip(names, masks, strict=True))
        if not torch.equal(mask_of(units[index], units[index + 1]), mask)
    ]
    if wrong or sorted(lower.places.tolist()) != list(range(features)):
        unordered = [name for name, mask in zip(names, masks, strict=True) if not _is_nested(mask)]
        name = (unordered or wrong or names)[0]
        raise ValueError(
            f"the mask of {name} cannot be written as in_degrees <= out_degrees"
            + ("" if not unordered else ": the sets of units that its outputs see are not nested")
        )
    return tuple(lower.places.tolist()), tuple(tuple(degrees.tolist()) for degrees in lower.hidden)


class _Bounds:
    """Lower, or upper, bounds of the places of the features and of the degrees of the hidden layers."""

    def __init__(self, masks: Sequence[Tensor], features: int, one_hidden: bool, upper: bool = False) -> None:
        self.masks, self.features, self.one_hidden, self.upper = masks, features, one_hidden, upper
        self.places = torch.full((features,), features - 1 if upper else 0)
        self.hidden = [torch.full((len(mask),), features if upper else 0) for mask in masks[:-1]]

    def start_behind_inputs(self) -> None:
        """Lower bounds near the solution: a unit comes behind all features that it depends on."""
        paths = torch.eye(self.features)
        for index, mask in enumerate(self.masks):
            paths = (mask.to(paths.dtype) @ paths > 0).to(paths.dtype)
            if index < len(self.hidden):
                self.hidden[index] = paths.sum(-1).long()
        self.places = paths.sum(-1).long().view(-1, self.features).amax(0)

    def tighten(self) -> None:
        """Tightens the bounds until all masks are satisfied, or a bound leaves 0, ..., D."""
        previous: int | None = None
        while previous != (total := sum(int(d.sum()) for d in (self.places, *self.hidden))) and all(
            0 <= int(d.min()) and int(d.max()) <= self.features for d in (self.places, *self.hidden)
        ):
            previous = total
            for index in range(len(self.masks)):
                self._tighten_layer(index)
            if self.one_hidden:
                self.hidden = [self._extreme(torch.stack(self.hidden))] * len(self.hidden)

    def _extreme(self, bounds: Tensor) -> Tensor:
        return bounds.amin(0) if self.upper else bounds.amax(0)

    def _tighten_layer(self, index: int) -> None:
        mask, first, last = self.masks[index], index == 0, index == len(self.masks) - 1
        inputs = self.places + 1 if first else self.hidden[index - 1]
        outputs = self.places.repeat(len(mask) // self.features) if last else self.hidden[index]
        if self.upper:
            inputs = torch.minimum(inputs, torch.where(mask, outputs.unsqueeze(-1), self.features).amin(0))
            outputs = torch.minimum(outputs, torch.where(mask, self.features, inputs - 1).amin(1))
        else:
            outputs = torch.maximum(outputs, torch.where(mask, inputs, 0).amax(1))
            inputs = torch.maximum(inputs, torch.where(mask, 0, outputs.unsqueeze(-1) + 1).amax(0))
        if first:
            self.places = self._extreme(torch.stack([self.places, inputs - 1]))
        else:
            self.hidden[index - 1] = inputs
        if last:
            self.places = self._extreme(torch.stack([self.places, *outputs.view(-1, self.features)]))
        else:
            self.hidden[index] = outputs


def _is_nested(mask: Tensor) -> bool:
    rows = mask[mask.sum(-1).argsort()]
    return not bool((rows[:-1] & ~rows[1:]).any())
