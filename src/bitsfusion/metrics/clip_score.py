"""CLIP score (section 7): how well images show what their prompts say."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel
from transformers.image_processing_utils import BaseImageProcessor
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from bitsfusion.errors import InputError
from bitsfusion.metrics.checkpoint import load_checkpoint


class ClipScorer:
    """Cosine between CLIP's image and text features, in [-1, 1]; a good pair has about 0.3 with ViT-B/32.

    Differs from the paper: nothing; note that other tools report 100 times this number.
    """

    def __init__(
        self,
        model: CLIPModel,
        tokenizer: PreTrainedTokenizerBase,
        image_processor: BaseImageProcessor,
        batch_size: int = 64,
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.batch_size = batch_size

    @classmethod
    def from_pretrained(cls, source: str | PathLike[str], device: str = "cpu", batch_size: int = 64) -> ClipScorer:
        """A scorer from a folder, or hub id, that holds a CLIPModel, its tokenizer and its image processor.

        Raises:
            InputError: it holds no such model, or not all of its weights.
        """
        wanted = "a CLIP model with its tokenizer and image processor"
        model, tokenizer, image_processor = load_checkpoint(
            source, CLIPModel, AutoTokenizer, CLIPImageProcessorPil, what="CLIP scorer", wanted=wanted
        )
        model.to(torch.device(device))
        return cls(model, tokenizer, image_processor, batch_size)

    @torch.no_grad()
    def score(self, images: npt.NDArray[np.uint8], prompts: Sequence[str]) -> npt.NDArray[np.float64]:
        """The cosine of each image ([n, h, w, 3] uint8) with its own prompt: [n]. Prompts are cut to CLIP's length.

        Raises:
            InputError: the images are not uint8 [n, h, w, 3], or there is not one prompt for each.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise InputError(f"CLIP score: got images {images.dtype} {list(images.shape)}, wanted uint8 [n, h, w, 3]")
        if len(images) != len(prompts):
            raise InputError(f"CLIP score: got {len(images)} images and {len(prompts)} prompts, wanted as many of each")
        scores = np.zeros(len(images))
        for start in range(0, len(images), self.batch_size):
            batch = slice(start, start + self.batch_size)
            cosines = (self.image_features(images[batch]) * self.text_features(prompts[batch])).sum(1)
            scores[batch] = cosines.double().cpu().numpy()
        return scores

    @torch.no_grad()
    def image_features(self, images: npt.NDArray[np.uint8]) -> torch.Tensor:
        """Unit vectors of `images` ([n, h, w, 3] uint8): [n, width] float32."""
        inputs = self.image_processor(images=list(images), input_data_format="channels_last", return_tensors="pt")
        pixels = inputs["pixel_values"].to(self.model.device, self.model.dtype)
        pooled = self.model.vision_model(pixel_values=pixels).pooler_output
        return functional.normalize(self.model.visual_projection(pooled).float(), dim=1)

    @torch.no_grad()
    def text_features(self, prompts: Sequence[str]) -> torch.Tensor:
        """Unit vectors of `prompts`, cut to CLIP's length: [n, width] float32."""
        length = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(
            list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        pooled = self.model.text_model(
            input_ids=tokens["input_ids"].to(self.model.device),
            attention_mask=tokens["attention_mask"].to(self.model.device),
        ).pooler_output
        return functional.normalize(self.model.text_projection(pooled).float(), dim=1)
