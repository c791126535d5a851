"""Layers of torch that aihwkit cannot convert, restated as layers that it can.

Each has the interface and, in evaluation mode, the outputs of the layer it replaces, and is made
of ``nn.Linear``, which ``convert_to_analog`` finds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from aihwkit.nn import AnalogRNN
from aihwkit.nn.modules.rnn.cells import AnalogLSTMCell, AnalogVanillaRNNCell
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
States = Tensor | tuple[Tensor, Tensor]


class UnfoldedConvolution(nn.Module):
    """A convolution as linear layers, one for each group, over patches of its input.

    aihwkit's own convolutions know one group, zeros as padding and, where a matrix may need
    several tiles, two dimensions.

    Args:
        convolution: an ``nn.Conv1d``, ``nn.Conv2d`` or ``nn.Conv3d``.
    """

    def __init__(self, convolution: Convolution) -> None:
        super().__init__()
        self.kernel_size, self.stride = convolution.kernel_size, convolution.stride
        self.dilation = convolution.dilation
        self.padding_mode = convolution.padding_mode.replace("zeros", "constant")
        self.padding = _padding_of(convolution)
        n_groups = convolution.groups
        weights = convolution.weight.detach().flatten(1).chunk(n_groups)
        bias = convolution.bias
        biases = [None] * n_groups if bias is None else bias.detach().chunk(n_groups)
        self.groups = nn.ModuleList(map(linear, weights, biases))

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs for inputs ``(n, channels, ...)`` or ``(channels, ...)``."""
        n_axes = len(self.kernel_size)
        is_batched = inputs.dim() == n_axes + 2
        patches = inputs if is_batched else inputs.unsqueeze(0)
        patches = F.pad(patches, self.padding, mode=self.padding_mode)
        for axis in range(n_axes):
            length = self.dilation[axis] * (self.kernel_size[axis] - 1) + 1
            patches = patches.unfold(2 + axis, length, self.stride[axis])
            patches = patches[..., :: self.dilation[axis]]
        # (n, places, channels, kernel): a patch is a row, ordered as the kernels' weights are.
        patches = patches.movedim(1, 1 + n_axes)
        parts = patches.chunk(len(self.groups), dim=1 + n_axes)
        groups = zip(self.groups, parts, strict=True)
        outputs = torch.cat([group(part.flatten(1 + n_axes)) for group, part in groups], dim=-1)
        outputs = outputs.movedim(-1, 1)
        return outputs if is_batched else outputs.squeeze(0)


class SeparateAttention(nn.Module):
    """Multi-head attention whose projections are layers of their own.

    Args:
        attention: an ``nn.MultiheadAttention`` without ``bias_k`` and ``add_zero_attn``.
    """

    #: The new layers that hold each of the attention's parameters.
    LAYERS: Mapping[str, tuple[str, ...]] = {
        "in_proj_weight": ("query", "key", "value"),
        "q_proj_weight": ("query",),
        "k_proj_weight": ("key",),
        "v_proj_weight": ("value",),
        "out_proj.weight": ("output",),
    }

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.embed_dim, self.num_heads = attention.embed_dim, attention.num_heads
        self.kdim, self.vdim = attention.kdim, attention.vdim
        self.batch_first, self.dropout = attention.batch_first, attention.dropout
        self.in_proj_weight = self.in_proj_bias = None  # as torch's layers around it ask for them
        weights = (
            (attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight)
            if attention.in_proj_weight is None
            else attention.in_proj_weight.chunk(3)
        )
        has_bias = attention.in_proj_bias is not None
        biases = attention.in_proj_bias.chunk(3) if has_bias else (None, None, None)
        parts = zip(weights, biases, strict=True)
        self.query, self.key, self.value = (linear(weight, bias) for weight, bias in parts)
        self.output = linear(attention.out_proj.weight, attention.out_proj.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As ``nn.MultiheadAttention.forward``."""
        is_batched = query.dim() == 3
        if not is_batched:
            query, key, value = (part.unsqueeze(0) for part in (query, key, value))
            if key_padding_mask is not None:
                key_padding_mask = key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (part.transpose(0, 1) for part in (query, key, value))
        q, k, v = (
            self._heads(project(part))
            for project, part in ((self.query, query), (self.key, key), (self.value, value))
        )
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        if attn_mask is None and is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        if attn_mask is not None:
            if attn_mask.dim() == 3:  # one for each sequence and head
                attn_mask = attn_mask.reshape(len(q), self.num_heads, *attn_mask.shape[1:])
            scores = scores + _added(attn_mask, scores)
        if key_padding_mask is not None:
            scores = scores + _added(key_padding_mask[:, None, None, :], scores)
        shares = F.dropout(scores.softmax(dim=-1), self.dropout, self.training)
        output = self.output((shares @ v).transpose(1, 2).flatten(2))
        if not is_batched:
            output, shares = output.squeeze(0), shares.squeeze(0)
        elif not self.batch_first:
            output = output.transpose(0, 1)
        if not need_weights:
            return output, None
        return output, shares.mean(dim=-3) if average_attn_weights else shares

    def _heads(self, projected: Tensor) -> Tensor:
        """Shares of the heads ``(n, heads, length, width)`` of ``(n, length, embedding)``."""
        return projected.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class Recurrence(nn.Module):
    """An LSTM, a GRU or a simple recurrent network, as aihwkit's ``AnalogRNN`` of linear layers.

    Args:
        network: an ``nn.LSTM``, ``nn.GRU`` or ``nn.RNN`` without projections.
    """

    def __init__(self, network: nn.RNNBase) -> None:
        super().__init__()
        self.batch_first = network.batch_first
        self.n_directions = 2 if network.bidirectional else 1
        # Without an RPU configuration the cells are made of nn.Linear.
        self.unrolled = AnalogRNN(
            _cell_of(network), network.input_size, network.hidden_size, network.bias,
            num_layers=network.num_layers, bidir=network.bidirectional, dropout=network.dropout,
        )  # fmt: skip
        parameters = dict(network.named_parameters())
        for name, (place,) in self.layers_of(network).items():
            bias = parameters.get(name.replace("weight", "bias"))
            _set(self.get_submodule(place), parameters[name], bias)

    @staticmethod
    def layers_of(network: nn.RNNBase) -> dict[str, tuple[str, ...]]:
        """The new layer that holds each of the network's matrices."""
        places: dict[str, tuple[str, ...]] = {}
        for layer in range(network.num_layers):
            for direction in range(2 if network.bidirectional else 1):
                place = f"unrolled.rnn.layers.{layer}"
                place += f".directions.{direction}" if network.bidirectional else ""
                suffix = f"l{layer}" + ("_reverse" if direction else "")
                for kind in ("ih", "hh"):
                    places[f"weight_{kind}_{suffix}"] = (f"{place}.cell.weight_{kind}",)
        return places

    def forward(
        self, inputs: Tensor | PackedSequence, states: States | None = None
    ) -> tuple[Tensor | PackedSequence, States]:
        """As the forward pass of the network that this one replaces."""
        if isinstance(inputs, PackedSequence):
            return self._packed(inputs, states)
        is_batched = inputs.dim() == 3
        if not is_batched:
            inputs = inputs.unsqueeze(1)
            states = _map(lambda state: state.unsqueeze(1), states)
        elif self.batch_first:
            inputs = inputs.transpose(0, 1)
        outputs, last = self.unrolled(inputs, None if states is None else self._by_layer(states))
        joined = self._joined(last)
        if not is_batched:
            return outputs.squeeze(1), _map(lambda state: state.squeeze(1), joined)
        return outputs.transpose(0, 1) if self.batch_first else outputs, joined

    def _packed(
        self, inputs: PackedSequence, states: States | None
    ) -> tuple[PackedSequence, States]:
        """Sequences of several lengths, one after the other."""
        padded, lengths = pad_packed_sequence(inputs)
        results = []
        for n, length in enumerate(lengths.tolist()):
            own = _map(itemgetter((slice(None), slice(n, n + 1))), states)
            sequence = padded[:length, n : n + 1]
            sequence = sequence.transpose(0, 1) if self.batch_first else sequence
            results.append(self(sequence, own))
        batch = 0 if self.batch_first else 1
        outputs = pack_sequence([out.squeeze(batch) for out, _ in results], enforce_sorted=False)
        last: list[Any] = [state for _, state in results]
        if isinstance(last[0], Tensor):
            return outputs, torch.cat(last, dim=1)
        hidden, cell = (torch.cat(part, dim=1) for part in zip(*last, strict=True))
        return outputs, (hidden, cell)

    def _by_layer(self, states: States) -> list[Any]:
        """torch's states ``(layers × directions, n, hidden)`` as aihwkit's, by layer."""
        flat = list(zip(*states, strict=True)) if isinstance(states, tuple) else list(states)
        if self.n_directions == 1:
            return flat
        return [flat[first : first + 2] for first in range(0, len(flat), 2)]

    def _joined(self, states: list[Any]) -> States:
        """Reverses :meth:`_by_layer`."""
        flat = states if self.n_directions == 1 else [own for both in states for own in both]
        if isinstance(flat[0], Tensor):
            return torch.stack(flat)
        hidden, cell = zip(*flat, strict=True)
        return torch.stack(hidden), torch.stack(cell)


class _ReluCell(AnalogVanillaRNNCell):
    """A simple cell with the other of torch's two nonlinearities."""

    def forward(self, input_: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        output = torch.relu(self.weight_ih(input_) + self.weight_hh(state))
        return output, output


class _GRUCell(AnalogVanillaRNNCell):
    """aihwkit's own is made of analogue layers alone, and cannot be converted later."""

    def __init__(self, input_size: int, hidden_size: int, bias: bool, *_: object) -> None:
        super().__init__(input_size, hidden_size, bias)
        self.weight_ih = nn.Linear(input_size, 3 * hidden_size, bias)
        self.weight_hh = nn.Linear(hidden_size, 3 * hidden_size, bias)

    def forward(self, input_: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        reset_i, update_i, new_i = self.weight_ih(input_).chunk(3, 1)
        reset_h, update_h, new_h = self.weight_hh(state).chunk(3, 1)
        update = torch.sigmoid(update_i + update_h)
        new = torch.tanh(new_i + torch.sigmoid(reset_i + reset_h) * new_h)
        output = new + update * (state - new)
        return output, output


def linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear layer with copies of weights ``(out, in)`` and biases ``(out,)``, or none."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    _set(layer, weight, bias)
    return layer.to(weight.device)


def _set(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    layer.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())


def _padding_of(convolution: Convolution) -> list[int]:
    """A convolution's padding as ``torch.nn.functional.pad`` takes it, the last axis first."""
    if convolution.padding == "valid":
        return [0] * (2 * len(convolution.kernel_size))
    if convolution.padding == "same":
        sizes = zip(convolution.dilation, convolution.kernel_size, strict=True)
        totals = [dilation * (size - 1) for dilation, size in sizes]
        both = [(total // 2, total - total // 2) for total in totals]
    else:
        assert not isinstance(convolution.padding, str)
        both = [(padding, padding) for padding in convolution.padding]
    return [padding for pair in reversed(both) for padding in pair]


def _cell_of(network: nn.RNNBase) -> type[nn.Module]:
    if isinstance(network, nn.LSTM):
        return AnalogLSTMCell
    if isinstance(network, nn.GRU):
        return _GRUCell
    return _ReluCell if network.nonlinearity == "relu" else AnalogVanillaRNNCell


def _added(mask: Tensor, scores: Tensor) -> Tensor:
    """What a mask adds to scores: minus infinity where a Boolean one says True."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, device=mask.device, dtype=scores.dtype).masked_fill(
        mask, -torch.inf
    )


def _map(function: Callable[[Tensor], Tensor], states: Any) -> Any:
    """A function of each of a network's states; None of none."""
    if isinstance(states, tuple):
        return tuple(map(function, states))
    return None if states is None else function(states)
