"""ComposerModels for SPIN: their base class, and the one for Hugging Face causal LMs.

A pair batch goes through the scoring head: in training to the pair loss, whose gradient is computed
in the forward pass, otherwise to log-prob sums. Any other batch (held-out SFT rows, generation)
takes the parent class's path unchanged.

Dimensions: B pairs, S = 2B sequences, N scored tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from composer.devices import Device
from composer.models import HuggingFaceModel
from torch import Tensor, nn
from torchmetrics import Metric
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from spin_composer import startup
from spin_composer.data.held_out import HeldOutBatch, is_held_out_batch
from spin_composer.data.pairs import Ids, PairBatch, is_pair_batch, real_mask
from spin_composer.errors import InputError
from spin_composer.loss import PairLoss
from spin_composer.metrics import (
    GAME_METRICS,
    HELD_OUT_METRICS,
    PAIR_METRICS,
    PairMetric,
    TokenScores,
)
from spin_composer.model.causal_lm import as_causal_lm
from spin_composer.model.dropout import disable_dropout
from spin_composer.model.head import install_head
from spin_composer.model.layout.base import Layout
from spin_composer.model.layout.choose import choose_layout
from spin_composer.model.layout.padded import PADDED
from spin_composer.model.logprobs import (
    check_head,
    held_out_scores,
    response_logps,
    response_pair_loss,
    sequence_sums,
)
from spin_composer.model.metrics import held_out_metrics, pair_metrics
from spin_composer.model.trained import checkpoint_state, trainable_names
from spin_composer.model.tying import correct_tied_flag
from spin_composer.model.unwrap import inner_model
from spin_composer.model.wrapping import prepare_for_fsdp
from spin_composer.pretrained.config import DEFAULT_ATTENTION
from spin_composer.pretrained.limits import model_limits
from spin_composer.pretrained.load import (
    Source,
    check_loading,
    load_adapters,
    load_causal_lm,
    lora_config,
)
from spin_composer.pretrained.quantized import check_loaded
from spin_composer.pretrained.tokenizer_limits import check_tokenizer
from spin_composer.settings.spin import LayoutName

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

log = logging.getLogger(__name__)

Batch = PairBatch | Mapping[str, Tensor]
"""Pairs, or held-out SFT rows (``input_ids``, ``attention_mask``, ``labels``, each [B, T])."""


class SpinLM(HuggingFaceModel):
    """Base class of SPIN's ComposerModels."""

    pair_loss: PairLoss | None
    """The iteration's loss; the algorithm sets it."""
    layout: Layout
    """How pair batches are laid out for the forward; padded, unless the algorithm sets another."""
    longest: int
    """Tokens of the longest sequence that ``layout`` may be used for."""
    tokenizer: PreTrainedTokenizerBase  # pyright: ignore[reportIncompatibleVariableOverride]
    """The run's tokenizer; the algorithm rejects a model without one."""

    def prepare_for_spin(
        self, use_train_metrics: bool, more_metrics: Sequence[PairMetric] = ()
    ) -> None:
        """Install the head and disable dropout; embeddings and LoRA must be final."""
        self.pair_loss = None
        self.layout, self.longest = PADDED, 0
        correct_tied_flag(inner_model(self.model), has_adapters=self.using_peft)
        install_head(self.model)
        disabled = disable_dropout(self.model)
        if disabled:
            log.info("Dropout is off for policy and opponent: %d probabilities were set", disabled)
        names = PAIR_METRICS if use_train_metrics else ()
        self.train_metrics = self._get_metric_dict([*(metric() for metric in names), *more_metrics])
        startup.begin("Trainer")

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the state dict; for a PEFT model only adapters and other trained parameters."""
        if not (self.using_peft and self.should_save_peft_only):
            return super().state_dict(*args, **kwargs)
        whole = nn.Module.state_dict(self, *args, **kwargs)
        prefix = kwargs.get("prefix", args[1] if len(args) > 1 else "")
        return checkpoint_state(whole, trainable_names(self), prefix)

    def forward(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return ``policy_logps`` [B, 2] and ``lengths`` [B, 2] of a pair batch, and more.

        In training, ``pair_losses`` [B] and their mean ``loss``, which alone has a gradient.
        Without autograd or before a loss was set, ``token_logps`` [N].
        """
        if not is_pair_batch(batch):
            return super().forward(batch)  # type: ignore[arg-type]
        forward_pairs: Any = self._forward_pairs  # its decorator is not typed
        return forward_pairs(batch)

    @torch.compiler.disable  # lengths differ in every batch, which would be compiled again
    def _forward_pairs(self, batch: PairBatch) -> Mapping[str, Tensor]:
        lengths = batch["cu_scored"].long().diff().view(-1, 2)
        if torch.is_grad_enabled() and self.pair_loss is not None:
            return self._with_loss(batch, lengths, self.pair_loss)
        token_logps = response_logps(self.model, batch, self.layout)
        return {
            "policy_logps": sequence_sums(token_logps, batch["cu_scored"]).view(-1, 2),
            "lengths": lengths,
            "token_logps": token_logps,
        }

    def _with_loss(
        self, batch: PairBatch, lengths: Tensor, pair_loss: PairLoss
    ) -> dict[str, Tensor]:
        is_real = real_mask(batch)
        given = {} if is_real is None else {"is_real": is_real}

        def of_sums(real: Tensor, generated: Tensor) -> Tensor:
            policy = torch.stack((real, generated), 1)
            return pair_loss(policy, batch["opponent_logps"], lengths, **given)

        found = response_pair_loss(self.model, batch, of_sums, self.layout)
        return {
            "policy_logps": torch.stack((found.real_logps, found.generated_logps), 1),
            "lengths": lengths,
            "pair_losses": found.pair_losses,
            "loss": found.loss,
        }

    def loss(self, outputs: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Return the mean pair loss of a pair batch, the parent's loss of any other."""
        if not is_pair_batch(batch):
            return super().loss(outputs, batch)  # type: ignore[arg-type]
        if "loss" in outputs:
            return outputs["loss"]
        losses = self._required_loss()(
            outputs["policy_logps"], batch["opponent_logps"], outputs["lengths"], real_mask(batch)
        )
        return losses.mean()

    def eval_forward(
        self, batch: Batch, outputs: Mapping[str, Tensor] | None = None
    ) -> Tensor | Mapping[str, Tensor] | list[str] | TokenScores:
        """Return the outputs of a pair batch; the parent's evaluation of any other.

        Held-out rows are scored without padding, and without keeping their logits, if the run's
        layout has no padding and was tried on sequences of their length, and no metric needs
        logits.
        """
        if outputs is None and is_held_out_batch(batch) and self._takes_unpadded(batch):
            return held_out_scores(self.model, batch)
        if not is_pair_batch(batch):
            return super().eval_forward(batch, outputs)
        return self(batch) if outputs is None else outputs

    def update_metric(self, batch: Batch, outputs: Any, metric: Metric) -> dict:
        """Update pair metrics with pair batches only, and other metrics with other batches only."""
        if is_pair_batch(batch) != isinstance(metric, PairMetric):
            return {}
        if isinstance(outputs, TokenScores):
            metric.update(outputs, None)
            return {}
        if not isinstance(metric, PairMetric):
            return super().update_metric(batch, outputs, metric)
        loss, lengths = self._required_loss(), outputs["lengths"]
        policy, opponent = outputs["policy_logps"], batch["opponent_logps"]
        metric.update(policy, opponent, lengths, loss, cast("PairBatch", batch)["kinds"])
        return {}

    def add_metrics_of(self, game: str) -> None:
        """Compute a game's own metrics of training, if any are computed; a Trainer copies them."""
        if self.train_metrics:
            own = [metric() for metric in GAME_METRICS.get(game, ())]
            self.train_metrics |= self._get_metric_dict(own)

    @torch.no_grad()
    def response_logps(self, batch: PairBatch, layout: Layout | None = None) -> Tensor:
        """Return the log-prob [N] of each scored token, entering through this module (FSDP)."""
        kept, self.layout = self.layout, layout or self.layout
        try:
            return self(batch)["token_logps"]
        finally:
            self.layout = kept

    @torch.no_grad()
    def score(self, batch: PairBatch) -> Tensor:
        """Return the log-prob sums [B, 2] of a pair batch, without gradient."""
        return self(batch)["policy_logps"]

    def check_head(self, batch: PairBatch) -> None:
        """Compare head and model on a small pair batch (logprobs.check_head); all ranks call it."""
        score = partial(self.response_logps, layout=PADDED)
        check_head(self.model, batch, score=score, forward=self)

    def choose_layout(
        self,
        name: LayoutName,
        before: LayoutName | None,
        tokens: Ids,
        longest: int,
        device: Device,
    ) -> None:
        """Set the layout of the run (choose.choose_layout); all ranks call it.

        Args:
            name: The setting ``layout``.
            before: That of an iteration that has begun, which it keeps where ``name`` is ``auto``.
            tokens: Ids of real rows.
            longest: Tokens of the longest sequence of the run.
            device: Where batches go.
        """
        self.longest = longest

        def score(batch: PairBatch, layout: Layout) -> Tensor:
            return self.response_logps(device.batch_to_device(batch), layout)

        self.layout = choose_layout(name, self.model, tokens, longest, score, before)

    def _takes_unpadded(self, batch: HeldOutBatch) -> bool:
        return (
            self.layout is not PADDED
            and max(end for _, end in batch["spans"]) <= self.longest
            and all(isinstance(m, HELD_OUT_METRICS) for m in (self.val_metrics or {}).values())
        )

    def _required_loss(self) -> PairLoss:
        if self.pair_loss is None:
            raise RuntimeError(
                "A pair batch arrived, but no algorithm has set the model's pair_loss. "
                "Add `algorithms: spin` to the YAML, or SPIN(...) to the Trainer's algorithms."
            )
        return self.pair_loss


class HFSpinLM(SpinLM):
    """A Hugging Face causal LM for SPIN; its name in a YAML is ``hf_spin_lm``.

    The arguments are those of llm-foundry's ``hf_causal_lm``, which need not be installed. Weights
    are loaded as fp32, whatever the dtype of the file.

    Args:
        tokenizer: The model's tokenizer.
        pretrained_model_name_or_path: A name on the Hub or a local folder.
        trust_remote_code: Run Python code that comes with the model; false unless set.
        use_train_metrics: Compute the pair metrics while training.
        pretrained: Load the weights; otherwise they are random, by the model's config.
        pretrained_lora_id_or_path: LoRA adapters to continue with, a folder or a name on the Hub.
        use_auth_token: Send the Hub the token of ``hf auth login``, or this one.
        use_flash_attention_2: The same as ``attn_implementation="flash_attention_2"``.
        load_in_8bit: Not supported; true is refused.
        init_device: ``cpu``: every rank loads the model. ``mixed``: rank 0 does, and FSDP hands the
            weights on. ``meta``: nobody does; FSDP makes the weights and a checkpoint fills them.
        config_overrides: Settings of the model's config that differ; a nested mapping changes the
            entries that it names. ``dtype`` (``torch_dtype``) is that of the weights.
        peft_config: Settings of peft's LoraConfig: new adapters, which alone are trained.
        allow_embedding_resizing: Enlarge an embedding that has fewer rows than the tokenizer ids.
        additional_train_metrics: More metrics of pairs, by llm-foundry's names or as they are.
        additional_eval_metrics: More metrics of held-out rows, by llm-foundry's names or as they
            are.
        should_save_peft_only: Checkpoints of a model with adapters hold the trained weights only.
        attn_implementation: One of transformers'; ``eager`` if None.

    Raises:
        InputError: The model cannot be loaded, or its output layer cannot be scored.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        pretrained_model_name_or_path: str,
        trust_remote_code: bool = False,
        use_train_metrics: bool = True,
        *,
        pretrained: bool = True,
        pretrained_lora_id_or_path: str | None = None,
        use_auth_token: bool | str = False,
        use_flash_attention_2: bool = False,
        load_in_8bit: bool = False,
        init_device: Literal["cpu", "meta", "mixed"] = "cpu",
        config_overrides: Mapping[str, Any] | None = None,
        peft_config: Mapping[str, Any] | None = None,
        allow_embedding_resizing: bool = False,
        additional_train_metrics: Sequence[str | Metric] | None = None,
        additional_eval_metrics: Sequence[str | Metric] | None = None,
        should_save_peft_only: bool = True,
        attn_implementation: str | None = None,
    ) -> None:
        startup.begin("model")
        check_loading(load_in_8bit, use_flash_attention_2, attn_implementation)
        if use_flash_attention_2:
            attn_implementation = "flash_attention_2"
        source = Source(
            pretrained_model_name_or_path,
            pretrained=pretrained,
            trust_remote_code=trust_remote_code,
            token=use_auth_token,
            attn_implementation=attn_implementation or DEFAULT_ATTENTION,
            init_device=init_device,
            config_overrides=config_overrides or {},
        )
        adapters = None if peft_config is None else lora_config(peft_config)
        more = pair_metrics(additional_train_metrics or ()) if use_train_metrics else []
        held_out = held_out_metrics(additional_eval_metrics or ())
        model: Any = load_causal_lm(source)
        if pretrained_lora_id_or_path is not None:
            model = load_adapters(model, pretrained_lora_id_or_path, use_auth_token)
        _check_fit(model, tokenizer, allow_embedding_resizing)
        with as_causal_lm():
            super().__init__(
                model=model,
                tokenizer=tokenizer,  # type: ignore[arg-type]
                use_logits=True,
                eval_metrics=held_out,
                shift_labels=True,
                allow_embedding_resizing=allow_embedding_resizing,
                peft_config=adapters,
                should_save_peft_only=should_save_peft_only,
            )
        prepare_for_fsdp(self.model)
        self.prepare_for_spin(use_train_metrics, more)

    @classmethod
    def from_model(
        cls,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        use_train_metrics: bool = True,
        should_save_peft_only: bool = True,
    ) -> HFSpinLM:
        """Return the ComposerModel of a model that is already in memory.

        The model is used, not copied: its output layer and its dropout are changed in place.

        Args:
            model: a Hugging Face causal LM, or a PeftModel around one.
            tokenizer: its tokenizer.
            use_train_metrics: compute the pair metrics while training.
            should_save_peft_only: checkpoints hold the trained weights only, LoRA's and others.

        Raises:
            InputError: The model is quantized, or its adapters, its output layer or the tokenizer
                are such that it cannot play.
        """
        check_loaded(model)
        given: Mapping[str, PeftConfig] = getattr(model, "peft_config", None) or {}
        kinds = {str(getattr(c.peft_type, "value", c.peft_type)).upper() for c in given.values()}
        if kinds - {"LORA"}:
            raise InputError(f"model: PEFT of type {sorted(kinds)} is not supported. Use LoRA.")
        _check_fit(model, tokenizer, may_resize=False)
        self = cls.__new__(cls)
        with as_causal_lm():
            HuggingFaceModel.__init__(
                self,
                model=model,
                tokenizer=tokenizer,  # type: ignore[arg-type]
                use_logits=True,
                eval_metrics=held_out_metrics(),
                shift_labels=True,
                should_save_peft_only=should_save_peft_only,
            )
        prepare_for_fsdp(self.model)
        self.prepare_for_spin(use_train_metrics)
        return self


def _check_fit(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase | None, may_resize: bool
) -> None:
    """Refuse a tokenizer that is empty, or has ids that the model has no embedding for."""
    if tokenizer is not None:  # the algorithm refuses a model without one
        check_tokenizer(tokenizer, model_limits(inner_model(model).config), may_resize)
