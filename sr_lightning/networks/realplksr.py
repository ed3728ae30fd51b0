"""RealPLKSR: PLKSR with normalised blocks, for adversarial training on degraded images."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sr_lightning.errors import InputError
from sr_lightning.networks.layers import ChannelNorm, PixelShuffle, check_channels, conv3x3, narrow_init
from sr_lightning.networks.plksr import ElementwiseAttention, PartialLargeKernel

NUM_GROUPS = 4  # of the normalisation


class RealPLKSR(nn.Module):
    """neosr's stable form of PLKSR for real images (arXiv 2404.11848; github.com/dslisleedh/PLKSR, issue 4).

    Two 3x3 convolutions with Mish where PLKSR has GELU, and group normalisation at the end of each block. neosr and
    traiNNer-redux also train it with `layer_norm` and `dysample`. The names of the weights are the published ones.
    Initial weights as of PLKSR.

    Args:
        scale: The factor.
        num_features: Channels of all layers between the first and the last, a multiple of 4.
        num_blocks: Number of blocks: 28, or 12 for neosr's small network.
        kernel_size: Side of the large kernel, odd: 17, or 13 for the small network.
        split_ratio: Share of the channels that the large kernel sees.
        attention: Multiply each block's features by a sigmoid of a convolution; the small network does not.
        layer_norm: Normalise the channels of each pixel at the start of a block, instead of groups at its end.
        dysample: Enlarge by `DySample`, instead of a pixel shuffle.
        num_channels: 3 (RGB, as published) or 1 (luma).

    Attributes:
        receptive_radius: Number of LR pixels in each direction that an output pixel depends on, at every scale; None
            with group normalisation, which averages over the whole image, and with DySample, which samples anywhere.
        derived: Pattern of the names in published files that follow from the settings.

    Shapes: lr (N, num_channels, h, w) in [0, 1], at least 1x1 -> sr (N, num_channels, h*scale, w*scale), float32,
    not clamped.

    Raises:
        InputError: The number of channels or of features is not supported, or the kernel is even.

    Example:
        >>> import torch
        >>> RealPLKSR(scale=2, num_features=16, num_blocks=1)(torch.rand(1, 3, 8, 6)).shape
        torch.Size([1, 3, 16, 12])
    """

    derived = r"to_img\.init_pos"

    def __init__(
        self,
        *,
        scale: int,
        num_features: int = 64,
        num_blocks: int = 28,
        kernel_size: int = 17,
        split_ratio: float = 0.25,
        attention: bool = True,
        layer_norm: bool = False,
        dysample: bool = False,
        num_channels: int = 3,
    ) -> None:
        super().__init__()
        check_channels(num_channels)
        if num_features % NUM_GROUPS and not layer_norm:
            raise InputError(f"num_features={num_features} is not a multiple of {NUM_GROUPS}, the normalised groups")
        if kernel_size % 2 == 0:
            raise InputError(f"kernel_size={kernel_size} is even: give an odd side")
        self.scale, self.num_channels = scale, num_channels
        is_local = layer_norm and not dysample
        self.receptive_radius = 2 + num_blocks * (2 + kernel_size // 2 + attention) if is_local else None
        self.feats = nn.Sequential(
            narrow_init(conv3x3(num_channels, num_features)),
            *(_Block(num_features, kernel_size, split_ratio, attention, layer_norm) for _ in range(num_blocks)),
            nn.Identity(),  # a dropout layer, unused, in the authors' code
            narrow_init(conv3x3(num_features, num_channels * scale**2)),
        )
        self.to_img = DySample(num_channels, scale) if dysample else PixelShuffle(scale)

    def forward(self, lr: Tensor) -> Tensor:
        x = self.feats(lr).float() + lr.repeat_interleave(self.scale**2, dim=1)  # (N, C*s*s, h, w)
        return self.to_img(x)  # (N, C, h*s, w*s)

    def published_state(self) -> dict[str, Tensor]:
        """Return the weights with all that published files hold: with DySample, the places without an offset."""
        state = dict(self.state_dict())
        return state | ({"to_img.init_pos": self.to_img.places} if isinstance(self.to_img, DySample) else {})


class _Block(nn.Module):
    def __init__(
        self, num_features: int, kernel_size: int, split_ratio: float, attention: bool, layer_norm: bool
    ) -> None:
        super().__init__()
        self.layer_norm = ChannelNorm(num_features) if layer_norm else nn.Identity()
        self.channel_mixer = nn.Sequential(
            conv3x3(num_features, 2 * num_features), nn.Mish(), narrow_init(conv3x3(2 * num_features, num_features))
        )
        self.lk = PartialLargeKernel(int(num_features * split_ratio), kernel_size)
        self.attn = ElementwiseAttention(num_features) if attention else nn.Identity()
        self.refine = narrow_init(nn.Conv2d(num_features, num_features, 1))
        self.norm = nn.Identity() if layer_norm else nn.GroupNorm(NUM_GROUPS, num_features)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.refine(self.attn(self.lk(self.channel_mixer(self.layer_norm(x))))))


class DySample(nn.Module):
    """Learning to Upsample by Learning to Sample, Liu et al. 2023, section 3.3 (arXiv 2308.15085).

    Each output pixel samples the features bilinearly at its own place and a learned offset, one for each group of
    channels; a 1x1 convolution makes the image.

    Args:
        num_channels: Of the image, C.
        scale: The factor s.

    Shapes: (N, C*s*s, h, w) -> (N, C, h*s, w*s), float32.
    """

    places: Tensor

    def __init__(self, num_channels: int, scale: int) -> None:
        super().__init__()
        in_channels, self.scale = num_channels * scale**2, scale
        self.num_groups = num_channels if scale % 2 else 4
        self.end_conv = nn.Conv2d(in_channels, num_channels, 1)
        self.offset = narrow_init(nn.Conv2d(in_channels, 2 * self.num_groups * scale**2, 1))
        self.scope = nn.Conv2d(in_channels, 2 * self.num_groups * scale**2, 1, bias=False)
        nn.init.zeros_(self.scope.weight)
        step = (torch.arange(scale) - (scale - 1) / 2) / scale  # from an LR pixel's centre to those of its SR pixels
        xy = torch.stack([step.repeat(scale), step.repeat_interleave(scale)])  # (2, s*s)
        self.register_buffer("places", xy.repeat(1, self.num_groups).reshape(1, -1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        n, _, height, width = x.shape
        offset = (self.offset(x) * self.scope(x).sigmoid() / 2).float() + self.places  # (N, 2*G*s*s, h, w), LR pixels
        offset = F.pixel_shuffle(offset, self.scale).unflatten(1, (2, self.num_groups))  # (N, 2, G, h*s, w*s)
        across, down = (torch.arange(side * self.scale, device=x.device) // self.scale for side in (width, height))
        grid = [  # the image from -1 to 1
            (2 * (offset[:, 0] + across) + 1) / width - 1,
            (2 * (offset[:, 1] + down[:, None]) + 1) / height - 1,
        ]
        groups = x.float().unflatten(1, (self.num_groups, -1)).flatten(0, 1)  # (N*G, C*s*s/G, h, w)
        sampled = F.grid_sample(
            groups, torch.stack(grid, dim=-1).flatten(0, 1), padding_mode="border", align_corners=False
        )
        return self.end_conv(sampled.unflatten(0, (n, self.num_groups)).flatten(1, 2)).float()
