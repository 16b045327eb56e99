"""A walk over the tokens of a ViT, without training and with it: python -m docs.examples.vit_tokens

Tokens (B, N, C) are embeddings as they come. Without training, scores are diffused along the cosines of tokens:

    psi = normalize(tokens.mT.unflatten(2, grid), dim=1) * temperature**0.5
    refined = diffuse(scores, psi, mu=0.8)

What that is worth depends on the tokens. Those of a large pretrained encoder know objects; the small one here has seen nothing
but a few hundred generated images, so that its figures say that it runs and what it costs, and nothing about DINO or CLIP.
With training, it is `DiffusedHead(head, [channels], channels_last=True)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import timm
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from difnet_kernels import DiffusedHead, diffuse
from docs.examples.common import CLASSES, TEST_SEED, compare, images, mean_iou, options_of

SIZE, CHANNELS = 96, 96
MU = 0.8
TEMPERATURES = (5.0, 10.0, 20.0, 40.0)  # the best on images of their own


class Head(nn.Module):
    """A score per token, on the grid that the tokens come from."""

    def __init__(self, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid, self.scores = grid, nn.Linear(CHANNELS, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.scores(tokens).mT.unflatten(2, self.grid)


class Segmenter(nn.Module):
    """A ViT of timm, a head, and scores at the size of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = timm.create_model(
            "vit_tiny_patch16_224", patch_size=8, img_size=SIZE, embed_dim=CHANNELS, depth=4, num_heads=3, num_classes=0
        )
        self.head: nn.Module = Head(self.encoder.patch_embed.grid_size)

    def tokens(self, image: Tensor) -> Tensor:
        """(B, N, C), without those that are no patches."""
        return self.encoder.forward_features(image)[:, self.encoder.num_prefix_tokens :]

    def forward(self, image: Tensor) -> Tensor:
        return interpolate(self.head(self.tokens(image)), image.shape[2:], mode="bilinear")


def refined(network: Segmenter, temperature: float, image: Tensor) -> Tensor:
    """The probabilities of `network`, diffused along its tokens to convergence; nothing is trained."""
    tokens = network.tokens(image)
    scores = network.head(tokens)
    psi = normalize(tokens.mT.unflatten(2, scores.shape[2:]), dim=1) * temperature**0.5
    return interpolate(diffuse(scores.softmax(1), psi, mu=MU), image.shape[2:], mode="bilinear")


def without_training(network: Segmenter, few: bool) -> dict[str, float]:
    """mIoU of a trained network as it is and refined; the temperature is the best of those tried on other images."""
    choose = images(4 if few else 100, SIZE, split="val")
    test = images(8 if few else 200, SIZE, seed=TEST_SEED, split="test")
    found = {temperature: mean_iou(partial(refined, network, temperature), choose) for temperature in TEMPERATURES}
    best = max(found, key=lambda temperature: found[temperature])
    return {
        "temperature": best,
        "as it is": mean_iou(network, test),
        "refined": mean_iou(partial(refined, network, best), test),
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    options = options_of("A walk over the tokens of a ViT.", ["vit"], arguments)
    plain = Segmenter()

    def add_walk(network: nn.Module) -> None:
        told = without_training(network.eval(), options.few)
        print(
            f"without training: mIoU {told['as it is']:.1%} as it is, {told['refined']:.1%} refined, temperature "
            f"{told['temperature']:g}"
        )
        network.head = DiffusedHead(network.head, [CHANNELS], channels_last=True)

    return compare(options, plain, add_walk, size=SIZE)


if __name__ == "__main__":
    main()
