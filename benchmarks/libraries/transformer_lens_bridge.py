"""TransformerLens 4: its bridge around the torch model, run with hooks.

The bridge is built from the module that is already loaded, which keeps torch's fused attention; the
loader by name would force the slower plain one. It computes queries, keys and values apart, with
hooks on each; that is what it costs more than hooks alone.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
from transformers import DynamicCache

from libraries import torch_common as common
from workloads import BATCHED, CELL, ROWS, Library, Outputs, Subject, Ways, middle, quarter


class TransformerLensBridge(Library):
    """Both models, bridged."""

    def __init__(self, subject: Subject):
        self.shape, self.inputs = subject.shape, common.Tensors(subject)
        self.model, self.ft = _bridge(subject.base), _bridge(subject.ft)
        self.sites = [f"blocks.{layer}.hook_out" for layer in range(subject.shape.layers)]

    def w0(self, batch: int) -> Ways:
        """Plain forward."""
        return {"": lambda: self._plain(self.inputs.tokens[:batch])}

    @torch.inference_mode()
    def _plain(self, tokens: Tensor) -> Outputs:
        return common.numpy(self.model(tokens, use_cache=False))

    def w1(self, batch: int) -> Ways:
        """Capture by name; it cannot stop behind the last block, but unembeds one token only."""
        return {"": lambda: common.numpy(self._resid_post(self.inputs.tokens[:batch]))}

    @torch.inference_mode()
    def _resid_post(self, tokens: Tensor) -> Tensor:
        return self._run_with_cache(self.model, tokens, logits_to_keep=1)[1]

    def _run_with_cache(
        self, model: TransformerBridge, tokens: Tensor, **options: object
    ) -> tuple[Tensor, Tensor]:
        logits, cache = model.run_with_cache(
            tokens,
            names_filter=self.sites,
            return_cache_object=False,
            use_cache=False,
            **options,
        )
        return logits, torch.stack([cache[site] for site in self.sites])

    def w2(self, batch: int) -> Ways:
        """Capture with `stop_at_layer`."""
        return {"": lambda: self._stop_early(self.inputs.tokens[:batch])}

    @torch.inference_mode()
    def _stop_early(self, tokens: Tensor) -> Outputs:
        last = quarter(self.shape)
        return common.numpy(self.model(tokens, stop_at_layer=last + 1, use_cache=False))

    def w3(self, batch: int) -> Ways:
        """A patch with an activation that was captured before."""
        layer, position = middle(self.shape), self.shape.tokens // 2
        source = self._resid_post(self.inputs.clean)[layer, 0, position]

        def patch(x: Tensor, hook: object) -> Tensor:
            x[:, position] = source
            return x

        return {"": lambda: self._edited(patch, layer, self.inputs.corrupt)}

    @torch.inference_mode()
    def _edited(self, change: Callable[..., Tensor], layer: int, tokens: Tensor) -> Outputs:
        hooks = [(self.sites[layer], change)]
        return common.numpy(self.model.run_with_hooks(tokens, fwd_hooks=hooks, use_cache=False))

    def w4(self, batch: int) -> Ways:
        """A sweep; `start_at_layer` would save nothing, as it runs the earlier blocks too."""
        return {
            CELL: lambda: self._sweep(1),
            BATCHED: lambda: self._sweep(min(ROWS, self.shape.tokens)),
        }

    @torch.inference_mode()
    def _sweep(self, rows: int) -> Outputs:
        clean = self._resid_post(self.inputs.clean)[:, 0]
        scores = [
            torch.cat([self._cells(layer, clean[layer], at) for at in self._chunks(rows)])
            for layer in range(self.shape.layers)
        ]
        return common.numpy(torch.stack(scores))

    def _chunks(self, rows: int) -> tuple[Tensor, ...]:
        return torch.arange(self.shape.tokens).split(rows)

    def _cells(self, layer: int, clean: Tensor, at: Tensor) -> Tensor:
        def patch(x: Tensor, hook: object) -> Tensor:
            x[torch.arange(len(at)), at] = clean[at]
            return x

        tokens = self.inputs.corrupt.expand(len(at), -1)
        hooks = [(self.sites[layer], patch)]
        return self.inputs.metric(
            self.model.run_with_hooks(tokens, fwd_hooks=hooks, use_cache=False, logits_to_keep=1)
        )

    def w5(self, batch: int) -> Ways:
        """Steering at every step: of the bridge's loop, and of a bare loop with its cache."""
        prompts = self.inputs.prompts[:batch]
        return {
            "generate": lambda: self._generate(prompts),
            "own loop": lambda: self._greedy(prompts),
        }

    def _steered(self) -> object:
        def steer(x: Tensor, hook: object) -> Tensor:
            return x + self.inputs.steering

        return self.model.hooks(fwd_hooks=[(self.sites[middle(self.shape)], steer)])

    @torch.inference_mode()
    def _generate(self, prompts: Tensor) -> Outputs:
        with self._steered():
            tokens = self.model.generate(
                prompts,
                max_new_tokens=self.shape.new,
                do_sample=False,
                stop_at_eos=False,
                return_type="tokens",
                verbose=False,
            )
        return common.numpy(tokens[:, prompts.shape[1] :])

    @torch.inference_mode()
    def _greedy(self, tokens: Tensor) -> Outputs:
        cache, new = DynamicCache(config=self.model.original_model.config), []
        with self._steered():
            for _ in range(self.shape.new):
                logits = self.model(tokens, past_key_values=cache, logits_to_keep=1)
                tokens = logits[:, -1].argmax(-1, keepdim=True)
                new.append(tokens)
        return common.numpy(torch.cat(new, dim=1))

    def w6(self, batch: int) -> Ways:
        """Gradients at all layers from one backward pass; weights take none."""
        return {"": lambda: common.numpy(self._gradients(self.inputs.tokens[:batch])[1])}

    def _gradients(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        acts: list[Tensor] = []

        def keep(x: Tensor, hook: object) -> Tensor:
            # The graph starts at the first site: nothing before it is asked for.
            acts.append(x if acts else x.requires_grad_())
            return x

        hooks = [(site, keep) for site in self.sites]
        logits = self.model.run_with_hooks(
            tokens, fwd_hooks=hooks, use_cache=False, logits_to_keep=1
        )
        gradients = torch.autograd.grad(self.inputs.metric(logits).sum(), acts)
        return torch.stack([act.detach() for act in acts]), torch.stack(gradients)

    def w7(self, batch: int) -> Ways:
        """A clean pass without gradients, a corrupt pass with, and a product."""
        return {"": self._attribute}

    def _attribute(self) -> Outputs:
        clean = self._resid_post(self.inputs.clean)
        corrupt, gradients = self._gradients(self.inputs.corrupt)
        return common.numpy(((clean - corrupt) * gradients).sum(-1)[:, 0])

    def w8(self, batch: int) -> Ways:
        """An SAE called in a hook."""

        def ablate(x: Tensor, hook: object) -> Tensor:
            return self.inputs.ablate(x)

        return {"": lambda: self._edited(ablate, middle(self.shape), self.inputs.tokens[:batch])}

    def w9(self, batch: int) -> Ways:
        """Both models, chunk by chunk."""
        return {"": self._diff}

    @torch.inference_mode()
    def _diff(self) -> Outputs:
        parts = []
        for tokens in self.inputs.pairs.split(self.shape.chunk):
            base, base_acts = self._run_with_cache(self.model, tokens)
            ft, ft_acts = self._run_with_cache(self.ft, tokens)
            parts.append(common.compare(base, ft, base_acts, ft_acts))
        return common.stacked(parts)


def _bridge(folder: str) -> TransformerBridge:
    model = common.load(folder)
    return build_bridge_from_module(
        model, "GPT2LMHeadModel", hf_config=model.config
    ).requires_grad_(False)
