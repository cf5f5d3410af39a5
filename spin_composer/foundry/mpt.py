"""llm-foundry's MPT as a ComposerModel for SPIN."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from llmfoundry.models import ComposerMPTCausalLM
from transformers import PreTrainedTokenizerBase

from spin_composer import startup
from spin_composer.data.pairs import is_pair_batch
from spin_composer.foundry.mpt_config import check_mpt_runs
from spin_composer.model.causal_lm import as_causal_lm
from spin_composer.model.lm import Batch, SpinLM


class MPTSpinLM(SpinLM, ComposerMPTCausalLM):
    """llm-foundry's MPT for SPIN; its name in a YAML is ``mpt_spin_lm``.

    Args:
        tokenizer: the model's tokenizer.
        use_train_metrics: compute the pair metrics while training.
        loss_fn: the SFT loss of evaluation batches; needs no flash-attn unless set.
        kwargs: the other keys of llm-foundry's ``mpt_causal_lm`` (MPTConfig).

    Raises:
        InputError: transformers is too new for llm-foundry's MPT.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None = None,
        use_train_metrics: bool | None = True,
        loss_fn: str | dict | None = "torch_crossentropy",
        **kwargs: Any,
    ) -> None:
        startup.begin("model")
        check_mpt_runs()
        with as_causal_lm():
            ComposerMPTCausalLM.__init__(
                self, tokenizer=tokenizer, use_train_metrics=False, loss_fn=loss_fn, **kwargs
            )
        self.prepare_for_spin(bool(use_train_metrics))

    def flops_per_batch(self, batch: Batch) -> float:
        """Return the forward and backward FLOPs of a batch, as llm-foundry counts them."""
        if not is_pair_batch(batch):
            return super().flops_per_batch(batch)
        lengths = [b - a for a, b in pairwise(batch["seqlen_bounds"])]
        parameters = 2.0 * self.n_active_params * sum(lengths)
        config: Any = self.config
        attention = 4.0 * config.n_layers * config.d_model
        return 3.0 * (parameters + attention * sum(length**2 for length in lengths))
