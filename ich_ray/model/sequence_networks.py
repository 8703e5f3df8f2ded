"""Sequence models: features of the places of a series in, logits of places and examination out.

What all share: normalization of the features (in the module, so that nobody can forget it), what is told of where a
place lies, a linear layer before the model, and two heads. The models are named in `SEQUENCE_MODELS`
(sequence_parameters.py). Knows nothing of data, losses or optimizers.

Array shapes: features are float32 `[series, longest, d]` and places float32 `[series, longest]`, in order; a mask is
bool `[series, longest]`, True where there is a place, and every series has one at least. What stands behind the end of
a series changes nothing, whatever it is.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn.functional import gelu
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ich_ray.model.sequence_parameters import SEQUENCE_MODELS, SequenceParameters

__all__ = ["SEQUENCE_MODELS", "SequenceNetwork", "build_sequence_network"]

# Units of the layer that says how much a place counts for the examination.
_ATTENTION = 128
# Normalized features beyond are those of a unit that training never saw active.
_FARTHEST_SD = 10.0
# Wavelengths of what is told of a place, in slices; a head of 150 mm has 30 of 5 mm.
_WAVELENGTHS = (4.0, 8.0, 16.0, 32.0, 64.0)
_SLICE_MM = 5.0
LONGEST_ATTENTION = 1024  # places; a CT of the head in slices of 0.5 mm has about 320
_LARGEST_HEADS, _LEAST_OF_HEAD = 8, 16


class SequenceNetwork(nn.Module):
    """A sequence model between its inputs and two heads.

    The slice head also sees the projected inputs of the place itself, past the model. The study head weighs the places
    anew for each label (attention).
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, parameters: SequenceParameters, features: int, labels: int) -> None:
        super().__init__()
        self.drawn, self.features, self.labels = parameters, features, labels
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))
        told = 0 if parameters.position == "none" else 1 + 2 * len(_WAVELENGTHS)
        self.project = nn.Linear(features * (3 if parameters.deltas else 1) + told, parameters.projection)
        self.model = SEQUENCE_MODELS[parameters.model](parameters, parameters.projection)
        width = int(self.model.width)  # type: ignore[arg-type]
        self.dropout = nn.Dropout(parameters.dropout)
        self.slice_head = nn.Linear(width + parameters.projection, labels)
        self.attention = nn.Sequential(nn.Linear(width, _ATTENTION), nn.Tanh(), nn.Linear(_ATTENTION, labels))
        self.study_head = nn.Linear(width, labels)

    def normalize_by(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        """Take mean and standard deviation of the training slices' features, each `[d]`."""
        self.mean.copy_(mean)
        self.std.copy_(torch.where(std > 1e-6, std, 1.0))  # a unit that never changes says nothing

    def forward(
        self, features: torch.Tensor, places_mm: torch.Tensor, mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of places, float32 `[series, longest, labels]`, and of examinations, `[series, labels]`.

        Args:
            features: any kind of float, finite where there is a place.
            places_mm: along the normal, ascending; NaN where it is not known.
            mask: of the places that are there; None where all are.
        """
        inputs = self._inputs(features, places_mm, mask)
        projected = self.dropout(gelu(self.project(inputs)))
        seen = self.dropout(self.model(projected, mask))
        slices = self.slice_head(torch.cat([seen, projected], 2))
        scores = self.attention(seen)
        if mask is not None:
            scores = scores.masked_fill(~mask.unsqueeze(2), -torch.inf)
            seen = seen.masked_fill(~mask.unsqueeze(2), 0.0)
        shares = scores.float().softmax(1)  # how much each place counts, `[series, longest, labels]`
        # The head's row of a label is applied to what that label's shares add up to.
        study = (torch.einsum("spl,spw->slw", shares, seen.float()) * self.study_head.weight).sum(2)
        return slices.float(), study + self.study_head.bias

    def _inputs(self, features: torch.Tensor, places_mm: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        normal = ((features.float() - self.mean) / self.std).clamp(-_FARTHEST_SD, _FARTHEST_SD)
        if mask is not None:
            normal = normal.masked_fill(~mask.unsqueeze(2), 0.0)
        if self.training and self.drawn.noise:
            normal = normal + self.drawn.noise * torch.randn_like(normal)
        if self.training and self.drawn.slice_dropout:
            left = torch.rand(normal.shape[:2], device=normal.device) >= self.drawn.slice_dropout
            normal = normal * left.unsqueeze(2)
        parts = [normal]
        if self.drawn.deltas:
            parts += _differences(normal, mask)
        if self.drawn.position != "none":
            parts.append(_told(self.drawn.position, places_mm, mask))
        return torch.cat(parts, 2)


def _differences(normal: torch.Tensor, mask: torch.Tensor | None) -> list[torch.Tensor]:
    """Differences to the place before and to the place after, 0 where there is none."""
    none = torch.zeros_like(normal[:, :1])
    steps = normal[:, 1:] - normal[:, :-1]
    if mask is not None:
        steps = steps.masked_fill(~mask[:, 1:].unsqueeze(2), 0.0)
    return [torch.cat([none, steps], 1), torch.cat([-steps, none], 1)]


def _told(position: str, places_mm: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Where the places lie, counted from the middle of their series: `[series, longest, 11]`.

    As a share of 15 slices or 75 mm, half a head, and as sines and cosines, which tell neighbors from each other.
    """
    there = torch.ones_like(places_mm) if mask is None else mask.to(places_mm.dtype)
    if position == "ordinal":
        number = there.cumsum(1) - 1
        place = number - (there.sum(1, keepdim=True) - 1) / 2
    else:
        known = there.bool() & ~places_mm.isnan()
        low = places_mm.masked_fill(~known, torch.inf).amin(1, keepdim=True)
        high = places_mm.masked_fill(~known, -torch.inf).amax(1, keepdim=True)
        place = (places_mm - (low + high) / 2).masked_fill(~known, 0.0) / _SLICE_MM
    waves = 2 * math.pi / torch.tensor(_WAVELENGTHS, device=place.device)
    angles = place.unsqueeze(2) * waves
    return torch.cat([place.unsqueeze(2) / 15, angles.sin(), angles.cos()], 2)


class RecurrentModel(nn.Module):
    """GRU or LSTM in both directions; the one from the end begins at the last place of its series."""

    def __init__(self, kind: type[nn.GRU | nn.LSTM], parameters: SequenceParameters, numbers: int) -> None:
        super().__init__()
        between = parameters.dropout if parameters.layers > 1 else 0.0
        self.cells = kind(
            numbers, parameters.hidden, parameters.layers, batch_first=True, dropout=between, bidirectional=True
        )
        self.width = 2 * parameters.hidden

    def forward(self, inputs: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        if mask is None:
            seen: torch.Tensor = self.cells(inputs)[0]
            return seen
        packed = pack_padded_sequence(inputs, mask.sum(1).cpu(), batch_first=True, enforce_sorted=False)
        seen, _ = pad_packed_sequence(self.cells(packed)[0], batch_first=True, total_length=mask.shape[1])
        return seen


def bigru(parameters: SequenceParameters, numbers: int) -> nn.Module:
    """A bidirectional GRU."""
    return RecurrentModel(nn.GRU, parameters, numbers)


def bilstm(parameters: SequenceParameters, numbers: int) -> nn.Module:
    """A bidirectional LSTM."""
    return RecurrentModel(nn.LSTM, parameters, numbers)


class TransformerModel(nn.Module):
    """A transformer encoder, normalized before each part; without a position it takes a series for a set.

    Beyond 1,024 places a place attends to the 256 to 768 on either side, so that memory does not grow with the square.
    """

    def __init__(self, parameters: SequenceParameters, numbers: int) -> None:
        super().__init__()
        heads = next(h for h in range(_LARGEST_HEADS, 0, -1) if h == 1 or _fits(numbers, h))
        block = nn.TransformerEncoderLayer(
            numbers, heads, parameters.hidden, parameters.dropout, "gelu", batch_first=True, norm_first=True
        )
        last = nn.LayerNorm(numbers)
        self.encoder = nn.TransformerEncoder(block, parameters.layers, norm=last, enable_nested_tensor=False)
        self.width = numbers

    def forward(self, inputs: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        if mask is None or mask.shape[1] <= LONGEST_ATTENTION:
            return self._encoded(inputs, mask)
        lengths = mask.sum(1)
        short = torch.nonzero(lengths <= LONGEST_ATTENTION).flatten()
        seen = torch.zeros_like(inputs)
        if len(short):
            cut = slice(None, LONGEST_ATTENTION)
            seen[short, cut] = self._encoded(inputs[short, cut], mask[short, cut]).to(seen.dtype)
        for row in torch.nonzero(lengths > LONGEST_ATTENTION).flatten().tolist():
            length = int(lengths[row])
            seen[row, :length] = self._in_windows(inputs[row : row + 1, :length])[0].to(seen.dtype)
        return seen

    def _in_windows(self, inputs: torch.Tensor) -> torch.Tensor:
        """Of one long series: the middle half of each window."""
        parts, length, half = [], inputs.shape[1], LONGEST_ATTENTION // 2
        for begin in range(0, length, half):
            first = max(0, min(begin - half // 2, length - LONGEST_ATTENTION))
            window = self._encoded(inputs[:, first : first + LONGEST_ATTENTION], None)
            parts.append(window[:, begin - first : begin - first + half])
        return torch.cat(parts, 1)

    def _encoded(self, inputs: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        seen: torch.Tensor = self.encoder(inputs, src_key_padding_mask=None if mask is None else ~mask)
        return seen


def _fits(numbers: int, heads: int) -> bool:
    return numbers % heads == 0 and numbers // heads >= _LEAST_OF_HEAD


class DilatedConvModel(nn.Module):
    """Convolutions over three places that lie 1, 2, 4 and so on apart, each added to what it is given."""

    def __init__(self, parameters: SequenceParameters, numbers: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            _DilatedBlock(parameters, numbers, dilation=2**layer) for layer in range(parameters.layers)
        )
        self.width = numbers

    def forward(self, inputs: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        for block in self.blocks:
            inputs = block(inputs, mask)
        return inputs


class _DilatedBlock(nn.Module):
    def __init__(self, parameters: SequenceParameters, numbers: int, dilation: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(numbers)
        self.wide = nn.Conv1d(numbers, parameters.hidden, 3, padding=dilation, dilation=dilation)
        self.narrow = nn.Linear(parameters.hidden, numbers)
        self.dropout = nn.Dropout(parameters.dropout)

    def forward(self, inputs: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        normal = self.norm(inputs)
        if mask is not None:  # behind the end there is nothing, as before the beginning
            normal = normal.masked_fill(~mask.unsqueeze(2), 0.0)
        wide = self.wide(normal.transpose(1, 2)).transpose(1, 2)
        added: torch.Tensor = inputs + self.dropout(self.narrow(gelu(wide)))
        return added


def build_sequence_network(parameters: SequenceParameters, features: int, labels: int) -> SequenceNetwork:
    """The network of a draw, in training mode, for so many features and labels, `any` last.

    Its features are as they come until `normalize_by` is told of those of the training slices.
    """
    return SequenceNetwork(parameters, features, labels)
