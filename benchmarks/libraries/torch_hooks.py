"""Torch with forward hooks and nothing else: the floor that libraries on torch build on."""

import contextlib
import functools
from collections.abc import Callable, Iterator

import torch
import torch._dynamo.utils
from torch import Tensor

from libraries import torch_common as common
from workloads import BATCHED, CELL, ROWS, SUFFIX, Library, Outputs, Subject, Ways, middle, quarter

Change = Callable[[int, Tensor], Tensor | None]


class _Stop(Exception):
    pass


class TorchHooks(Library):
    """Both models, and hooks on their blocks."""

    def __init__(self, subject: Subject):
        self.shape, self.inputs = subject.shape, common.Tensors(subject)
        self.model, self.ft = common.load(subject.base), common.load(subject.ft)

    def compiles(self) -> int:
        """Returns how many graphs torch.compile has made."""
        return torch._dynamo.utils.counters["stats"]["unique_graphs"]

    def w0(self, batch: int) -> Ways:
        """Plain forward; for one sequence compiled by torch too (20 s each time)."""
        ways: Ways = {"": lambda: self._plain(self.model, batch)}
        if batch == 1:
            ways["torch.compile"] = lambda: self._plain(self._compiled, batch)
        return ways

    @functools.cached_property
    def _compiled(self) -> Callable[..., object]:
        return torch.compile(self.model, dynamic=False)

    @torch.inference_mode()
    def _plain(self, model: Callable[..., object], batch: int) -> Outputs:
        return common.numpy(model(self.inputs.tokens[:batch], use_cache=False).logits)

    def w1(self, batch: int) -> Ways:
        """Capture of all layers; the unembedding is not run."""
        return {"": lambda: common.numpy(self._resid_post(self.model, self.inputs.tokens[:batch]))}

    @torch.inference_mode()
    def _resid_post(self, model: torch.nn.Module, tokens: Tensor) -> Tensor:
        acts: list[Tensor] = []
        with _hooks(model, lambda layer, out: acts.append(out)):
            model.transformer(tokens, use_cache=False)
        return torch.stack(acts)

    def w2(self, batch: int) -> Ways:
        """Capture of one layer; an exception ends the pass."""
        return {"": lambda: self._stop_early(batch)}

    @torch.inference_mode()
    def _stop_early(self, batch: int) -> Outputs:
        def stop(layer: int, out: Tensor) -> None:
            acts.append(out)
            raise _Stop

        acts: list[Tensor] = []
        layers = (quarter(self.shape),)
        with contextlib.suppress(_Stop), _hooks(self.model, stop, layers):
            self.model(self.inputs.tokens[:batch], use_cache=False)
        return common.numpy(acts[0])

    def w3(self, batch: int) -> Ways:
        """A patch with an activation that was captured before."""
        layer, position = middle(self.shape), self.shape.tokens // 2
        source = self._resid_post(self.model, self.inputs.clean)[layer, 0, position]

        def patch(layer: int, out: Tensor) -> Tensor:
            out[:, position] = source
            return out

        return {"": lambda: self._edited(patch, layer, self.inputs.corrupt)}

    @torch.inference_mode()
    def _edited(self, change: Change, layer: int, tokens: Tensor) -> Outputs:
        with _hooks(self.model, change, (layer,)):
            return common.numpy(self.model(tokens, use_cache=False).logits)

    def w4(self, batch: int) -> Ways:
        """A sweep: one cell at a time, rows of a batch, and rows that start where they differ."""
        rows = min(ROWS, self.shape.tokens)
        return {
            CELL: lambda: self._sweep(1),
            BATCHED: lambda: self._sweep(rows),
            SUFFIX: lambda: self._sweep_suffix(rows),
        }

    @torch.inference_mode()
    def _sweep(self, rows: int) -> Outputs:
        shape, inputs = self.shape, self.inputs
        clean = self._resid_post(self.model, inputs.clean)[:, 0]
        tokens = inputs.corrupt.expand(rows, -1)
        scores = torch.empty(shape.layers, shape.tokens)
        for layer in range(shape.layers):
            for start in range(0, shape.tokens, rows):
                at = torch.arange(start, min(start + rows, shape.tokens))

                def patch(layer: int, out: Tensor, at: Tensor = at) -> Tensor:
                    out[torch.arange(len(at)), at] = clean[layer, at]
                    return out

                with _hooks(self.model, patch, (layer,)):
                    logits = self.model(tokens[: len(at)], use_cache=False, logits_to_keep=1).logits
                scores[layer, at] = inputs.metric(logits)
        return common.numpy(scores)

    @torch.inference_mode()
    def _sweep_suffix(self, rows: int) -> Outputs:
        shape, inputs, decoder = self.shape, self.inputs, self.model.transformer
        both = torch.cat((inputs.clean, inputs.corrupt))
        clean, corrupt = self._resid_post(self.model, both).unbind(1)
        scores = torch.empty(shape.layers, shape.tokens)
        for layer in range(shape.layers):
            for start in range(0, shape.tokens, rows):
                at = torch.arange(start, min(start + rows, shape.tokens))
                x = corrupt[layer].repeat(len(at), 1, 1)
                x[torch.arange(len(at)), at] = clean[layer, at]
                for block in decoder.h[layer + 1 :]:
                    x = block(x)
                logits = self.model.lm_head(decoder.ln_f(x[:, -1:]))
                scores[layer, at] = inputs.metric(logits)
        return common.numpy(scores)

    def w5(self, batch: int) -> Ways:
        """Steering at every step, with torch's KV cache."""
        return {"": lambda: self._generate(self.inputs.prompts[:batch])}

    @torch.inference_mode()
    def _generate(self, prompts: Tensor) -> Outputs:
        def steer(layer: int, out: Tensor) -> Tensor:
            return out + self.inputs.steering

        with _hooks(self.model, steer, (middle(self.shape),)):
            return common.numpy(common.greedy(self.model, self.shape.new, prompts))

    def w6(self, batch: int) -> Ways:
        """Gradients at all layers from one backward pass; weights take none."""
        return {"": lambda: common.numpy(self._gradients(self.inputs.tokens[:batch])[1])}

    def _gradients(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        acts: list[Tensor] = []

        def keep(layer: int, out: Tensor) -> None:
            # The graph starts at the first site: nothing before it is asked for.
            acts.append(out if acts else out.requires_grad_())

        with _hooks(self.model, keep):
            logits = self.model(tokens, use_cache=False, logits_to_keep=1).logits
        gradients = torch.autograd.grad(self.inputs.metric(logits).sum(), acts)
        return torch.stack([act.detach() for act in acts]), torch.stack(gradients)

    def w7(self, batch: int) -> Ways:
        """A clean pass without gradients, a corrupt pass with, and a product."""
        return {"": self._attribute}

    def _attribute(self) -> Outputs:
        clean = self._resid_post(self.model, self.inputs.clean)
        corrupt, gradients = self._gradients(self.inputs.corrupt)
        return common.numpy(((clean - corrupt) * gradients).sum(-1)[:, 0])

    def w8(self, batch: int) -> Ways:
        """An SAE called in a hook."""
        layer = middle(self.shape)

        def ablate(layer: int, out: Tensor) -> Tensor:
            return self.inputs.ablate(out)

        return {"": lambda: self._edited(ablate, layer, self.inputs.tokens[:batch])}

    def w9(self, batch: int) -> Ways:
        """Both models, chunk by chunk."""
        return {"": self._diff}

    @torch.inference_mode()
    def _diff(self) -> Outputs:
        return common.stacked(
            [
                common.compare(*self._logits_and_acts(tokens))
                for tokens in self.inputs.pairs.split(self.shape.chunk)
            ]
        )

    def _logits_and_acts(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        logits, acts = [], []
        for model in (self.model, self.ft):
            resid_post: list[Tensor] = []
            with _hooks(model, lambda layer, out, keep=resid_post: keep.append(out)):
                logits.append(model(tokens, use_cache=False).logits)
            acts.append(torch.stack(resid_post))
        return *logits, *acts


@contextlib.contextmanager
def _hooks(
    model: torch.nn.Module, change: Change, layers: tuple[int, ...] | None = None
) -> Iterator[None]:
    """Calls `change(layer, resid_post)` in a forward pass; what it returns replaces the output."""

    def hook(layer: int) -> Callable[..., Tensor | None]:
        return lambda module, args, out: change(layer, out)

    blocks = model.transformer.h
    chosen = range(len(blocks)) if layers is None else layers
    handles = [blocks[layer].register_forward_hook(hook(layer)) for layer in chosen]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
