"""nnsight: traces over the wrapped torch model.

A trace is captured from the source of its `with` block, so that each stands in a function of this
file. What nnsight lets one skip (`stop`, `skip`, unused logits) is skipped.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from libraries import torch_common as common
from workloads import BATCHED, CELL, ROWS, SUFFIX, Library, Outputs, Subject, Ways, middle, quarter

import nnsight  # isort: skip  # It patches torch.Tensor, so it comes last.


class NNsightTraces(Library):
    """Both models, wrapped."""

    def __init__(self, subject: Subject):
        self.shape, self.inputs = subject.shape, common.Tensors(subject)
        self.model = nnsight.NNsight(common.load(subject.base))
        self.ft = nnsight.NNsight(common.load(subject.ft))

    def w0(self, batch: int) -> Ways:
        """A trace that keeps the logits."""
        return {"": lambda: self._plain(self.inputs.tokens[:batch])}

    @torch.inference_mode()
    def _plain(self, tokens: Tensor) -> Outputs:
        with self.model.trace(tokens, use_cache=False):
            logits = self.model.lm_head.output.save()
        return common.numpy(logits)

    def w1(self, batch: int) -> Ways:
        """A trace that stops after the last block."""
        return {"": lambda: common.numpy(self._resid_post(self.inputs.tokens[:batch]))}

    @torch.inference_mode()
    def _resid_post(self, tokens: Tensor) -> Tensor:
        with self.model.trace(tokens, use_cache=False) as tracer:
            acts = torch.stack([block.output for block in self.model.transformer.h]).save()
            tracer.stop()
        return acts

    def w2(self, batch: int) -> Ways:
        """A trace that stops after a quarter of the blocks."""
        return {"": lambda: self._stop_early(self.inputs.tokens[:batch])}

    @torch.inference_mode()
    def _stop_early(self, tokens: Tensor) -> Outputs:
        with self.model.trace(tokens, use_cache=False) as tracer:
            act = self.model.transformer.h[quarter(self.shape)].output.save()
            tracer.stop()
        return common.numpy(act)

    def w3(self, batch: int) -> Ways:
        """A patch with an activation that was captured before."""
        layer, position = middle(self.shape), self.shape.tokens // 2
        source = self._resid_post(self.inputs.clean)[layer, 0, position]
        return {"": lambda: self._patch(layer, position, source)}

    @torch.inference_mode()
    def _patch(self, layer: int, position: int, source: Tensor) -> Outputs:
        with self.model.trace(self.inputs.corrupt, use_cache=False):
            self.model.transformer.h[layer].output[:, position] = source
            logits = self.model.lm_head.output.save()
        return common.numpy(logits)

    def w4(self, batch: int) -> Ways:
        """A sweep; also with invokes, nnsight's own batches, and with shared blocks skipped."""
        return {
            CELL: lambda: self._sweep(self._cells),
            f"{BATCHED}, one invoke each": lambda: self._sweep(self._invokes),
            BATCHED: lambda: self._sweep(self._rows),
            SUFFIX: lambda: self._sweep(self._skips),
        }

    @torch.inference_mode()
    def _sweep(self, cells: Callable[[int, Tensor, Tensor, Tensor], Tensor]) -> Outputs:
        both = torch.cat((self.inputs.clean, self.inputs.corrupt))
        clean, corrupt = self._resid_post(both).unbind(1)
        scores = [
            torch.cat([cells(layer, clean[layer], corrupt[layer], at) for at in self._chunks()])
            for layer in range(self.shape.layers)
        ]
        return common.numpy(torch.stack(scores))

    def _chunks(self) -> tuple[Tensor, ...]:
        return torch.arange(self.shape.tokens).split(ROWS)

    def _cells(self, layer: int, clean: Tensor, corrupt: Tensor, at: Tensor) -> Tensor:
        return torch.cat([self._cell(layer, clean, int(position)) for position in at])

    def _cell(self, layer: int, clean: Tensor, position: int) -> Tensor:
        with self.model.trace(self.inputs.corrupt, use_cache=False, logits_to_keep=1):
            self.model.transformer.h[layer].output[:, position] = clean[position]
            logits = self.model.lm_head.output.save()
        return self.inputs.metric(logits)

    def _invokes(self, layer: int, clean: Tensor, corrupt: Tensor, at: Tensor) -> Tensor:
        model = _Invokes(self.model._module)
        with model.trace(use_cache=False, logits_to_keep=1) as tracer:
            for position in at:
                with tracer.invoke(self.inputs.corrupt):
                    model.transformer.h[layer].output[:, position] = clean[position]
            with tracer.invoke():
                logits = model.lm_head.output.save()
        return self.inputs.metric(logits)

    def _rows(self, layer: int, clean: Tensor, corrupt: Tensor, at: Tensor) -> Tensor:
        rows, tokens = torch.arange(len(at)), self.inputs.corrupt.expand(len(at), -1)
        with self.model.trace(tokens, use_cache=False, logits_to_keep=1):
            self.model.transformer.h[layer].output[rows, at] = clean[at]
            logits = self.model.lm_head.output.save()
        return self.inputs.metric(logits)

    def _skips(self, layer: int, clean: Tensor, corrupt: Tensor, at: Tensor) -> Tensor:
        tokens = self.inputs.corrupt.expand(len(at), -1)
        patched = corrupt.repeat(len(at), 1, 1)
        patched[torch.arange(len(at)), at] = clean[at]
        with self.model.trace(tokens, use_cache=False, logits_to_keep=1):
            for block in self.model.transformer.h[: layer + 1]:
                block.skip(patched)
            logits = self.model.lm_head.output.save()
        return self.inputs.metric(logits)

    def w5(self, batch: int) -> Ways:
        """Steering at every step: of Hugging Face's loop, and of a bare loop with its cache."""
        prompts = self.inputs.prompts[:batch]
        return {
            "generate": lambda: self._generate(prompts),
            "own loop": lambda: self._greedy(prompts),
        }

    @torch.inference_mode()
    def _generate(self, prompts: Tensor) -> Outputs:
        generate, new, layer = self.model._module.generate, self.shape.new, middle(self.shape)
        with self.model.trace(
            prompts, fn=generate, max_new_tokens=new, do_sample=False, pad_token_id=0
        ) as tracer:
            for _ in tracer.iter[:new]:
                self.model.transformer.h[layer].output += self.inputs.steering
            tokens = tracer.result.save()
        return common.numpy(tokens[:, prompts.shape[1] :])

    @torch.inference_mode()
    def _greedy(self, prompts: Tensor) -> Outputs:
        new, layer = self.shape.new, middle(self.shape)
        with self.model.trace(self.model._module, new, prompts, fn=common.greedy) as tracer:
            for _ in tracer.iter[:new]:
                self.model.transformer.h[layer].output += self.inputs.steering
            tokens = tracer.result.save()
        return common.numpy(tokens)

    def w6(self, batch: int) -> Ways:
        """Gradients by nnsight's backward context, and by torch after the trace."""
        tokens = self.inputs.tokens[:batch]
        return {
            "backward": lambda: common.numpy(self._backward(tokens)),
            "autograd.grad": lambda: common.numpy(self._gradients(tokens)[1]),
        }

    def _backward(self, tokens: Tensor) -> Tensor:
        with self.model.trace(tokens, use_cache=False, logits_to_keep=1):
            acts = [block.output for block in [self._start(), *self.model.transformer.h[1:]]]
            metric = self.inputs.metric(self.model.lm_head.output).sum()
            with metric.backward():
                gradients = nnsight.save([act.grad for act in reversed(acts)])
        return torch.stack(gradients[::-1])

    def _start(self) -> object:
        # The graph starts at the first site: nothing before it is asked for.
        first = self.model.transformer.h[0]
        first.output.requires_grad_()
        return first

    def _gradients(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        with self.model.trace(tokens, use_cache=False, logits_to_keep=1):
            blocks = [self._start(), *self.model.transformer.h[1:]]
            acts = nnsight.save([block.output for block in blocks])
            logits = self.model.lm_head.output.save()
        gradients = torch.autograd.grad(self.inputs.metric(logits).sum(), acts)
        return torch.stack([act.detach() for act in acts]), torch.stack(gradients)

    def w7(self, batch: int) -> Ways:
        """A clean trace that stops early, a corrupt one with gradients, and a product."""
        return {"": self._attribute}

    def _attribute(self) -> Outputs:
        clean = self._resid_post(self.inputs.clean)
        corrupt, gradients = self._gradients(self.inputs.corrupt)
        return common.numpy(((clean - corrupt) * gradients).sum(-1)[:, 0])

    def w8(self, batch: int) -> Ways:
        """An SAE called in a trace."""
        return {"": lambda: self._ablate(self.inputs.tokens[:batch])}

    @torch.inference_mode()
    def _ablate(self, tokens: Tensor) -> Outputs:
        with self.model.trace(tokens, use_cache=False):
            block = self.model.transformer.h[middle(self.shape)]
            block.output = self.inputs.ablate(block.output)
            logits = self.model.lm_head.output.save()
        return common.numpy(logits)

    def w9(self, batch: int) -> Ways:
        """Both models, chunk by chunk."""
        return {"": self._diff}

    @torch.inference_mode()
    def _diff(self) -> Outputs:
        parts = []
        for tokens in self.inputs.pairs.split(self.shape.chunk):
            base, base_acts = _logits_and_acts(self.model, tokens)
            ft, ft_acts = _logits_and_acts(self.ft, tokens)
            parts.append(common.compare(base, ft, base_acts, ft_acts))
        return common.stacked(parts)


def _logits_and_acts(model: nnsight.NNsight, tokens: Tensor) -> tuple[Tensor, Tensor]:
    with model.trace(tokens, use_cache=False):
        acts = torch.stack([block.output for block in model.transformer.h]).save()
        logits = model.lm_head.output.save()
    return logits, acts


class _Invokes(nnsight.NNsight):
    """Puts the tokens of several invokes into one batch."""

    def _batch_size(self, *inputs: Tensor, **kwargs: object) -> int:
        return len(inputs[0]) if inputs else 0

    def _batch(self, invokes: list, fn: object) -> tuple[tuple[Tensor], dict]:
        return (torch.cat([inputs[0] for inputs, _ in invokes]),), {}
