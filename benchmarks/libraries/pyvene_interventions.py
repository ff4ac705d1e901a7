"""pyvene: one intervenable model for each set of sites, all around the same torch model.

Sources are handed over as tensors that were collected before, so that no pass is run twice.
"""

import pyvene
import torch
from torch import Tensor

from libraries import torch_common as common
from workloads import BATCHED, CELL, ROWS, Library, Outputs, Subject, Ways, middle


class PyveneInterventions(Library):
    """Both models and the intervenable models around them."""

    def __init__(self, subject: Subject):
        self.shape, self.inputs = subject.shape, common.Tensors(subject)
        self.model, self.ft = common.load(subject.base), common.load(subject.ft)
        self.layers = range(subject.shape.layers)
        self.collect = self._intervenable(self.model, self.layers, _collect)
        self.patch = [
            self._intervenable(self.model, [layer], pyvene.VanillaIntervention)
            for layer in self.layers
        ]

    def _intervenable(self, model: object, layers: object, make: object) -> object:
        width = self.shape.width
        sites = [
            {"layer": layer, "component": "block_output", "intervention": make(embed_dim=width)}
            for layer in layers
        ]
        return pyvene.IntervenableModel(sites, model=model)

    def w0(self, batch: int) -> Ways:
        """Plain forward, by an intervenable model without interventions."""
        empty = pyvene.IntervenableModel([], model=self.model)
        return {"": lambda: self._logits(empty, self.inputs.tokens[:batch])}

    @torch.inference_mode()
    def _logits(self, model: pyvene.IntervenableModel, tokens: Tensor) -> Outputs:
        plain, edited = model(_arguments(tokens))
        return common.numpy((plain if edited is None else edited).logits)

    def w1(self, batch: int) -> Ways:
        """Capture of all layers; it cannot stop before the unembedding, but unembeds one token."""
        return {"": lambda: common.numpy(self._resid_post(self.inputs.tokens[:batch]))}

    @torch.inference_mode()
    def _resid_post(self, tokens: Tensor) -> Tensor:
        (_, acts), _ = self.collect(_arguments(tokens, logits_to_keep=1))
        return torch.stack(acts)

    # There is no W2: a pass cannot be stopped.

    def w3(self, batch: int) -> Ways:
        """A patch with an activation that was collected before."""
        layer, position = middle(self.shape), self.shape.tokens // 2
        source = self._resid_post(self.inputs.clean)[layer, 0, position]
        return {"": lambda: self._patched(layer, position, source)}

    @torch.inference_mode()
    def _patched(self, layer: int, position: int, source: Tensor) -> Outputs:
        _, output = self.patch[layer](
            _arguments(self.inputs.corrupt),
            unit_locations={"base": position},
            source_representations=source,
        )
        return common.numpy(output.logits)

    def w4(self, batch: int) -> Ways:
        """A sweep; a batch may patch another position in each row."""
        return {
            CELL: lambda: self._sweep(1),
            BATCHED: lambda: self._sweep(min(ROWS, self.shape.tokens)),
        }

    @torch.inference_mode()
    def _sweep(self, rows: int) -> Outputs:
        clean = self._resid_post(self.inputs.clean)[:, 0]
        chunks = torch.arange(self.shape.tokens).split(rows)
        scores = [
            torch.cat([self._cells(layer, clean[layer], at) for at in chunks])
            for layer in self.layers
        ]
        return common.numpy(torch.stack(scores))

    def _cells(self, layer: int, clean: Tensor, at: Tensor) -> Tensor:
        # pyvene sets this flag itself when a position is a number, and then reads the first row's
        # position for all rows.
        self.patch[layer].use_fast = False
        _, output = self.patch[layer](
            _arguments(self.inputs.corrupt.expand(len(at), -1), logits_to_keep=1),
            unit_locations={"sources->base": (None, [at[:, None].tolist()])},
            source_representations=clean[at][:, None],
        )
        return self.inputs.metric(output.logits)

    def w5(self, batch: int) -> Ways:
        """Steering at every step of Hugging Face's loop."""
        add = self._intervenable(self.model, [middle(self.shape)], pyvene.AdditionIntervention)
        prompts = self.inputs.prompts[:batch]
        return {"": lambda: self._generate(add, prompts)}

    @torch.inference_mode()
    def _generate(self, add: pyvene.IntervenableModel, prompts: Tensor) -> Outputs:
        _, tokens = add.generate(
            {"input_ids": prompts},
            source_representations=self.inputs.steering,
            intervene_on_prompt=True,
            max_new_tokens=self.shape.new,
            do_sample=False,
            pad_token_id=0,
        )
        return common.numpy(tokens[:, prompts.shape[1] :])

    def w6(self, batch: int) -> Ways:
        """Gradients of zeros that are added: what is collected is a copy outside of the graph."""
        add = self._intervenable(self.model, self.layers, pyvene.AdditionIntervention)
        return {"": lambda: common.numpy(self._gradients(add, self.inputs.tokens[:batch]))}

    def _gradients(self, add: pyvene.IntervenableModel, tokens: Tensor) -> Tensor:
        zeros = [
            torch.zeros(*tokens.shape, self.shape.width, requires_grad=True) for _ in self.layers
        ]
        _, output = add(_arguments(tokens, logits_to_keep=1), source_representations=zeros)
        metric = self.inputs.metric(output.logits).sum()
        return torch.stack(torch.autograd.grad(metric, zeros))

    def w7(self, batch: int) -> Ways:
        """Both prompts collected in one batch, gradients as in W6, and a product."""
        add = self._intervenable(self.model, self.layers, pyvene.AdditionIntervention)
        return {"": lambda: self._attribute(add)}

    def _attribute(self, add: pyvene.IntervenableModel) -> Outputs:
        both = torch.cat((self.inputs.clean, self.inputs.corrupt))
        clean, corrupt = self._resid_post(both).unbind(1)
        gradients = self._gradients(add, self.inputs.corrupt)[:, 0]
        return common.numpy(((clean - corrupt) * gradients).sum(-1))

    def w8(self, batch: int) -> Ways:
        """An SAE as a function that intervenes."""

        def make(embed_dim: int) -> object:
            return lambda base, source: self.inputs.ablate(base)

        ablate = self._intervenable(self.model, [middle(self.shape)], make)
        return {"": lambda: self._logits(ablate, self.inputs.tokens[:batch])}

    def w9(self, batch: int) -> Ways:
        """Both models, chunk by chunk."""
        ft = self._intervenable(self.ft, self.layers, _collect)
        return {"": lambda: self._diff(ft)}

    @torch.inference_mode()
    def _diff(self, collect_ft: pyvene.IntervenableModel) -> Outputs:
        parts = []
        for tokens in self.inputs.pairs.split(self.shape.chunk):
            (_, base_acts), base = self.collect(_arguments(tokens))
            (_, ft_acts), ft = collect_ft(_arguments(tokens))
            acts = torch.stack(base_acts), torch.stack(ft_acts)
            parts.append(common.compare(base.logits, ft.logits, *acts))
        return common.stacked(parts)


def _collect(embed_dim: int) -> pyvene.CollectIntervention:
    # Without this flag, pyvene 0.1.8 returns D numbers of T * D.
    return pyvene.CollectIntervention(keep_last_dim=True)


def _arguments(tokens: Tensor, **options: object) -> dict[str, object]:
    return {"input_ids": tokens, "use_cache": False, **options}
