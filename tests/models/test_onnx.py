"""Networks with walks in another runtime: their logits in onnxruntime are those of torch."""

import pytest
import torch

from difnet_kernels import onnx_decompositions
from models import build_model


@pytest.mark.parametrize("name", ["difnet_tiny", "walk_deeplab_tiny"])
def test_a_network_runs_in_onnxruntime(name, tmp_path):
    """fp32 rounding through ten layers and five walks: 1e-4 of the largest logit."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="pip install .[examples]")
    pytest.importorskip("onnxscript", reason="pip install .[examples]")
    torch.manual_seed(0)
    model, image = build_model(name, 5), torch.randn(1, 3, 65, 49)
    model(torch.randn(2, 3, 65, 49))  # statistics of a batch, so that logits are not tiny
    model.eval()
    if name == "walk_deeplab_tiny":
        model.walk.gamma.data.fill_(0.7)
    program = torch.export.export(model, (image,)).run_decompositions(onnx_decompositions())
    torch.onnx.export(program, (image,), tmp_path / "model.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (logits,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    with torch.no_grad():
        expected = model(image)
    torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=0, atol=1e-4 * expected.abs().max().item())
