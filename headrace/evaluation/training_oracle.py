"""The slow oracle of training: the whole pack at once through torch, its gradients by autograd."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from headrace.kernels.torch_blocks import rms_norm, rotate
from headrace.training.backbone import AttentionWeights, Backbone, MlpWeights
from headrace.training.pack import Pack
from headrace.training.parameters import Parameters


class TorchOracle:
    """The model with bypasses as leaves that autograd differentiates, in the backbone's float type."""

    def __init__(self, backbone: Backbone, parameters: Parameters) -> None:
        self._backbone = backbone
        self.leaves: dict[tuple[int, str], tuple[Tensor, Tensor]] = {}
        self._scales: dict[tuple[int, str], float] = {}
        for layer, name, bypass in parameters.bypasses():
            a, b = (torch.from_numpy(one.copy()).requires_grad_() for one in (bypass.a, bypass.b))
            self.leaves[layer, name], self._scales[layer, name] = (a, b), bypass.scale

    def log_probabilities(self, pack: Pack) -> Tensor:
        """Of each loss row's target."""
        config, backbone = self._backbone.config, self._backbone
        x = torch.from_numpy(backbone.embedding.values())[torch.from_numpy(pack.tokens).long()] * config.embedding_scale
        layer = -1
        for block in backbone.blocks:
            if isinstance(block, AttentionWeights):
                layer += 1
                x = x + self._attention(x, block, layer, pack)
            else:
                x = x + self._mlp(x, block, layer)
        hidden = rms_norm(x, torch.from_numpy(backbone.final_norm), config.norm_eps)[torch.from_numpy(pack.loss_rows).long()]
        logits = F.log_softmax(hidden @ torch.from_numpy(backbone.head.values()).T, dim=-1)
        return logits.gather(1, torch.from_numpy(pack.targets).long()[:, None])[:, 0]

    def gradient(self, layer: int, name: str) -> tuple[Tensor, Tensor]:
        """Of A and of B, after ``backward()`` of something made of :meth:`log_probabilities`."""
        a, b = self.leaves[layer, name]
        assert a.grad is not None
        assert b.grad is not None
        return a.grad, b.grad

    def _linear(self, x: Tensor, weight: Tensor, layer: int, name: str) -> Tensor:
        out = F.linear(x, weight)
        if (layer, name) in self.leaves:
            a, b = self.leaves[layer, name]
            out = out + F.linear(F.linear(x, a), b) * self._scales[layer, name]
        return out

    def _attention(self, x: Tensor, block: AttentionWeights, layer: int, pack: Pack) -> Tensor:
        spec, eps, count = block.spec, self._backbone.config.norm_eps, len(pack)
        heads, keys = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
        h = rms_norm(x, torch.from_numpy(block.norm), eps)
        weights = torch.from_numpy(block.qkv.values()).split((heads, keys, keys))
        rows = [self._linear(h, weight, layer, name) for weight, name in zip(weights, "qkv", strict=True)]
        if block.qkv_bias is not None:
            rows = [one + bias for one, bias in zip(rows, torch.from_numpy(block.qkv_bias).split((heads, keys, keys)), strict=True)]
        query, key, value = (one.reshape(count, -1, spec.head_dim) for one in rows)
        if block.q_norm is not None and block.k_norm is not None:
            query, key = rms_norm(query, torch.from_numpy(block.q_norm), eps), rms_norm(key, torch.from_numpy(block.k_norm), eps)
        angles = tuple(torch.from_numpy(one) for one in self._backbone.angles(layer, pack.positions))
        query, key = rotate(query, angles[0], angles[1]), rotate(key, angles[0], angles[1])
        group = spec.heads // spec.kv_heads
        key, value = (one.repeat_interleave(group, dim=1).transpose(0, 1) for one in (key, value))
        scores = query.transpose(0, 1) @ key.transpose(1, 2) * spec.scale
        shares = scores.masked_fill(~self._visible(pack, spec.window), float("-inf")).softmax(-1)
        out = self._linear((shares @ value).transpose(0, 1).reshape(count, -1), torch.from_numpy(block.o.values()), layer, "o")
        return out if block.post_norm is None else rms_norm(out, torch.from_numpy(block.post_norm), eps)

    def _mlp(self, x: Tensor, block: MlpWeights, layer: int) -> Tensor:
        eps = self._backbone.config.norm_eps
        h = rms_norm(x, torch.from_numpy(block.norm), eps)
        gate_weight, up_weight = torch.from_numpy(block.gate_up.values()).chunk(2)
        gate, up = self._linear(h, gate_weight, layer, "gate"), self._linear(h, up_weight, layer, "up")
        active = F.silu(gate) if block.spec.activation == "silu" else F.gelu(gate, approximate="tanh")
        out = self._linear(active * up, torch.from_numpy(block.down.values()), layer, "down")
        return out if block.post_norm is None else rms_norm(out, torch.from_numpy(block.post_norm), eps)

    @staticmethod
    def _visible(pack: Pack, window: int | None) -> Tensor:
        rows = torch.arange(len(pack))
        document = torch.bucketize(rows, torch.tensor(pack.ends), right=True)
        distance = rows[:, None] - rows
        seen = (document[:, None] == document) & (distance >= 0)
        return seen if window is None else seen & (distance < window)
