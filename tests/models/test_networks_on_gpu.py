"""What only a GPU can show: branches on two streams or two devices compute what one after the other does.

Without a GPU there is nothing to collect here, rather than something to skip.
"""

import copy

import pytest
import torch

from models import build_model


def loss_and_gradients(model, image, mask):
    model.zero_grad()
    logits = model(image)
    torch.nn.functional.cross_entropy(logits.float(), mask.to(logits.device)).backward()
    return logits.detach().cpu(), [p.grad.cpu() for p in model.parameters()]


if torch.cuda.is_available():

    @pytest.mark.gpu
    @pytest.mark.parametrize("name", ["difnet_tiny", "difnet18"])
    def test_two_streams_equal_one(name, monkeypatch):
        """Same kernels on the same numbers: equal to rounding in whatever order cuDNN sums, 2e-3 with TF32.
        A race would show as garbage, in some of twenty repeats at least."""
        torch.manual_seed(0)
        model = build_model(name, 5).cuda().train()
        image, mask = torch.randn(4, 3, 129, 129, device="cuda"), torch.randint(0, 5, (4, 129, 129), device="cuda")
        monkeypatch.setattr(type(model), "_side_by_side", lambda self, image: False)
        logits, gradients = loss_and_gradients(copy.deepcopy(model), image, mask)
        monkeypatch.undo()
        for _ in range(20):
            again, gradients_again = loss_and_gradients(copy.deepcopy(model), image, mask)
            torch.testing.assert_close(again, logits, rtol=0, atol=2e-3 * logits.abs().max().item())
            size = max(g.abs().max().item() for g in gradients)
            for ours, theirs in zip(gradients_again, gradients, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-3 * size)

    @pytest.mark.gpu
    def test_two_devices_equal_one():
        """A second GPU where there is one, the CPU otherwise. fp32 convolutions of two libraries, logits up to ~100."""
        torch.manual_seed(0)
        other = "cuda:1" if torch.cuda.device_count() > 1 else "cpu"
        alone = build_model("difnet_tiny", 5).cuda().eval()
        split = copy.deepcopy(alone).place({"seed": "cuda:0", "similarity": other})
        image = torch.randn(2, 3, 97, 97)
        with torch.no_grad():
            expected, got = alone(image.cuda()), split(image)
        assert got.device == expected.device
        torch.testing.assert_close(got, expected, rtol=0, atol=5e-3 * expected.abs().max().item())
