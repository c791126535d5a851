"""Layers of torch that aihwkit cannot convert, restated as layers that it can.

Each has the interface and, in evaluation mode, the outputs of the layer it replaces, and is made
of ``nn.Linear``, which ``convert_to_analog`` finds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


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
        projected = self.query(query), self.key(key), self.value(value)
        is_turned = self.batch_first and query.dim() == 3
        q, k, v = (part.transpose(0, 1) if is_turned else part for part in projected)
        # What torch itself would project with here.
        identity = torch.eye(self.embed_dim).to(q)
        attended, shares = F.multi_head_attention_forward(
            q, k, v, self.embed_dim, self.num_heads, in_proj_weight=identity.repeat(3, 1),
            in_proj_bias=None, bias_k=None, bias_v=None, add_zero_attn=False,
            dropout_p=self.dropout, out_proj_weight=identity, out_proj_bias=None,
            training=self.training, key_padding_mask=key_padding_mask, need_weights=need_weights,
            attn_mask=attn_mask, average_attn_weights=average_attn_weights, is_causal=is_causal,
        )  # fmt: skip
        return self.output(attended.transpose(0, 1) if is_turned else attended), shares


class Recurrence(nn.Module):
    """An LSTM, a GRU or a simple recurrent network, unrolled in time, of linear layers.

    Args:
        network: an ``nn.LSTM``, ``nn.GRU`` or ``nn.RNN`` without projections.
    """

    def __init__(self, network: nn.RNNBase) -> None:
        super().__init__()
        self.mode, self.num_layers = network.mode, network.num_layers
        self.batch_first, self.dropout = network.batch_first, network.dropout
        self.hidden_size = network.hidden_size
        self.directions = ("", "_reverse") if network.bidirectional else ("",)
        self.matrices = nn.ModuleDict()
        for name in self.layers_of(network):
            bias = getattr(network, name.replace("weight", "bias"), None)
            self.matrices[name] = linear(getattr(network, name), bias)

    @staticmethod
    def layers_of(network: nn.RNNBase) -> dict[str, tuple[str, ...]]:
        """The new layer that holds each of the network's matrices."""
        directions = ("", "_reverse") if network.bidirectional else ("",)
        parts = product(("ih", "hh"), range(network.num_layers), directions)
        names = [f"weight_{kind}_l{layer}{direction}" for kind, layer, direction in parts]
        return {name: (f"matrices.{name}",) for name in names}

    def forward(self, inputs: Any, states: Any = None) -> tuple[Any, Any]:
        """As the forward pass of the network that this one replaces."""
        is_lstm = self.mode == "LSTM"
        given = states if states is None or is_lstm else [states]
        if isinstance(inputs, PackedSequence):
            outputs, last = self._packed(inputs, given)
        elif inputs.dim() == 2:  # a single sequence
            given = given and [state.unsqueeze(1) for state in given]
            outputs, last = self._unrolled(inputs.unsqueeze(1), given)
            outputs, last = outputs.squeeze(1), [state.squeeze(1) for state in last]
        elif self.batch_first:
            outputs, last = self._unrolled(inputs.transpose(0, 1), given)
            outputs = outputs.transpose(0, 1)
        else:
            outputs, last = self._unrolled(inputs, given)
        return outputs, tuple(last) if is_lstm else last[0]

    def _packed(
        self, inputs: PackedSequence, states: Sequence[Tensor] | None
    ) -> tuple[Any, list[Tensor]]:
        """Sequences of several lengths, one after the other."""
        padded, lengths = pad_packed_sequence(inputs)
        outputs, last = [], []
        for n, length in enumerate(lengths.tolist()):
            own = states and [state[:, n : n + 1] for state in states]
            of_sequence, its_last = self._unrolled(padded[:length, n : n + 1], own)
            outputs.append(of_sequence.squeeze(1))
            last.append(its_last)
        joined = [torch.cat(parts, dim=1) for parts in zip(*last, strict=True)]
        return pack_sequence(outputs, enforce_sorted=False), joined

    def _unrolled(
        self, inputs: Tensor, states: Sequence[Tensor] | None
    ) -> tuple[Any, list[Tensor]]:
        """Outputs ``(times, n, ...)`` for inputs, and the last states.

        Args:
            inputs: ``(times, n, ...)``.
            states: hidden states ``(layers × directions, n, hidden)``, of an LSTM also those of its
                cells.
        """
        if states is None:
            n_states = 2 if self.mode == "LSTM" else 1
            shape = (self.num_layers * len(self.directions), inputs.shape[1], self.hidden_size)
            states = [inputs.new_zeros(shape)] * n_states
        outputs = inputs
        ends: list[list[Tensor]] = []
        for layer in range(self.num_layers):
            if layer > 0:
                outputs = F.dropout(outputs, self.dropout, self.training)
            of_directions = []
            for direction in self.directions:
                state = [of_kind[len(ends)] for of_kind in states]
                steps = outputs.flip(0) if direction else outputs
                hidden, end = self._one_layer(f"l{layer}{direction}", steps, state)
                of_directions.append(hidden.flip(0) if direction else hidden)
                ends.append(end)
            outputs = torch.cat(of_directions, dim=-1)
        return outputs, [torch.stack(of_kind) for of_kind in zip(*ends, strict=True)]

    def _one_layer(
        self, suffix: str, inputs: Tensor, state: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Hidden states ``(times, n, hidden)`` of a layer in one direction, and its last state."""
        of_inputs = self.matrices[f"weight_ih_{suffix}"]
        of_hidden = self.matrices[f"weight_hh_{suffix}"]
        outputs = []
        for step in inputs:
            state = self._step(of_inputs(step), of_hidden(state[0]), state)
            outputs.append(state[0])
        return torch.stack(outputs), state

    def _step(self, i: Tensor, h: Tensor, state: list[Tensor]) -> list[Tensor]:
        """The next state, given the products with inputs and hidden state; as torch's cells."""
        if self.mode == "LSTM":
            enter, forget, new, leave = (i + h).chunk(4, dim=1)
            cell = forget.sigmoid() * state[1] + enter.sigmoid() * new.tanh()
            return [leave.sigmoid() * cell.tanh(), cell]
        if self.mode == "GRU":
            (reset_i, update_i, new_i), (reset_h, update_h, new_h) = i.chunk(3, 1), h.chunk(3, 1)
            update = (update_i + update_h).sigmoid()
            new = (new_i + (reset_i + reset_h).sigmoid() * new_h).tanh()
            return [new + update * (state[0] - new)]
        return [(i + h).relu() if self.mode == "RNN_RELU" else (i + h).tanh()]


def linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear layer with copies of weights ``(out, in)`` and biases ``(out,)``, or none."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    layer.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return layer


def _padding_of(convolution: Convolution) -> list[int]:
    """A convolution's padding as ``torch.nn.functional.pad`` takes it, the last axis first."""
    if isinstance(convolution.padding, str):
        sizes = zip(convolution.dilation, convolution.kernel_size, strict=True)
        totals = [dilation * (size - 1) for dilation, size in sizes]
        totals = totals if convolution.padding == "same" else [0] * len(totals)
    else:
        totals = [2 * padding for padding in convolution.padding]
    return [side for total in reversed(totals) for side in (total // 2, total - total // 2)]
