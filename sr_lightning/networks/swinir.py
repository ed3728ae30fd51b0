"""SwinIR: self-attention in windows that are shifted from block to block."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sr_lightning.errors import InputError
from sr_lightning.networks.layers import check_channels, conv3x3, div2k_mean, pixel_shuffle, reflect_to_multiple


class SwinIR(nn.Module):
    """SwinIR: Image Restoration Using Swin Transformer, Liang et al. 2021, section 3 (arXiv 2108.10257).

    The form for lightweight super-resolution, with one convolution and a pixel shuffle at the end. The names of the
    weights are the published ones; the indices and masks that published files hold as well follow from the settings
    (`published_state`). Images whose sides are no multiple of the window are padded by reflection. Initial weights are
    those of the authors' code: normal with standard deviation 0.02 for the linear layers, PyTorch's default for
    convolutions. Their stochastic depth in training (rate 0.1) is left out.

    Args:
        scale: The factor.
        num_features: Channels of all layers between the first and the last, a multiple of `num_heads`.
        num_groups: Number of residual groups: 4 in the light network.
        num_blocks: Number of attention blocks per group, of which every second one has shifted windows: 6.
        num_heads: Number of attention heads: 6.
        window_size: Side of a window in LR pixels, even: 8.
        expansion: Channels inside the perceptron of a block, relative to `num_features`.
        num_channels: 3 (RGB, as in the paper) or 1 (luma).

    Attributes:
        receptive_radius: Number of LR pixels in each direction that an output pixel depends on, at every scale.
        alignment: Parts of an image are computed exactly if they begin at a multiple of this, the window.
        exports_any_size: False: torch.export cannot keep the number of windows free.
        derived: Pattern of the names in published files that follow from the settings.

    Shapes: lr (N, num_channels, h, w) in [0, 1], at least 1x1 -> sr (N, num_channels, h*scale, w*scale), float32,
    not clamped.

    Raises:
        InputError: The numbers of channels, features or heads do not go together, or the window is odd.

    Example:
        >>> import torch
        >>> SwinIR(scale=2, num_features=12, num_groups=1, num_blocks=2)(torch.rand(1, 3, 8, 6)).shape
        torch.Size([1, 3, 16, 12])
    """

    exports_any_size = False
    derived = r".*\.(relative_position_index|attn_mask)"
    mean: Tensor

    def __init__(
        self,
        *,
        scale: int,
        num_features: int = 60,
        num_groups: int = 4,
        num_blocks: int = 6,
        num_heads: int = 6,
        window_size: int = 8,
        expansion: float = 2.0,
        num_channels: int = 3,
    ) -> None:
        super().__init__()
        check_channels(num_channels)
        if num_features % num_heads:
            raise InputError(f"num_features={num_features} is not a multiple of num_heads={num_heads}")
        if window_size % 2:
            raise InputError(f"window_size={window_size} is odd: windows are shifted by half their side")
        self.scale, self.num_channels, self.alignment = scale, num_channels, window_size
        self.receptive_radius = _reach(num_groups, num_blocks, window_size)
        mean = div2k_mean(3) if num_channels == 3 else torch.zeros(1, 1, 1, 1)
        self.register_buffer("mean", mean, persistent=False)
        self.conv_first = conv3x3(num_channels, num_features)
        self.patch_embed = _Tokens(num_features)
        hidden = int(expansion * num_features)
        self.layers = nn.Sequential(
            *(_Group(num_features, num_blocks, num_heads, window_size, hidden) for _ in range(num_groups))
        )
        self.norm = nn.LayerNorm(num_features)
        self.conv_after_body = conv3x3(num_features, num_features)
        self.upsample = nn.Sequential(conv3x3(num_features, num_channels * scale**2))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, lr: Tensor) -> Tensor:
        height, width = lr.shape[-2:]
        x = self.conv_first(reflect_to_multiple(lr, self.alignment) - self.mean)  # (N, F, H, W), multiples of a window
        y = self.norm(self.layers(self.patch_embed(x.permute(0, 2, 3, 1))))  # (N, H, W, F)
        x = x + self.conv_after_body(y.permute(0, 3, 1, 2))
        x = self.upsample(x)[..., :height, :width]  # (N, C*s*s, h, w)
        return pixel_shuffle(x, self.scale).float() + self.mean  # (N, C, h*s, w*s)

    def published_state(self) -> dict[str, Tensor]:
        """Return the weights with all that published files hold: position indices, and masks for images of 64x64."""
        state = dict(self.state_dict())
        for name, module in self.named_modules():
            if isinstance(module, _Block):
                state[f"{name}.attn.relative_position_index"] = module.attn.index
                if module.shift:
                    state[f"{name}.attn_mask"] = shifted_mask(64, 64, self.alignment, module.shift)
        return state


class _Tokens(nn.Module):
    """The normalisation of the first features, under its published name."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(num_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


class _Group(nn.Module):
    """Attention blocks and a convolution, with a residual around them. Shapes: (N, H, W, F) -> (N, H, W, F)."""

    def __init__(self, num_features: int, num_blocks: int, num_heads: int, window: int, hidden: int) -> None:
        super().__init__()
        shifts = [window // 2 if i % 2 else 0 for i in range(num_blocks)]
        self.residual_group = _Blocks(*(_Block(num_features, num_heads, window, shift, hidden) for shift in shifts))
        self.conv = conv3x3(num_features, num_features)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(self.residual_group(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class _Blocks(nn.Module):
    """Attention blocks, under their published name."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


class _Block(nn.Module):
    """Attention within windows and a perceptron of each pixel. Shapes: (N, H, W, F) -> (N, H, W, F)."""

    def __init__(self, num_features: int, num_heads: int, window: int, shift: int, hidden: int) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1 = nn.LayerNorm(num_features)
        self.attn = _Attention(num_features, num_heads, window)
        self.norm2 = nn.LayerNorm(num_features)
        self.mlp = _Perceptron(num_features, hidden)

    def forward(self, x: Tensor) -> Tensor:
        n, height, width, features = x.shape
        rows, columns, side = height // self.window, width // self.window, self.window
        y, mask = self.norm1(x), None
        if self.shift:
            y = y.roll((-self.shift, -self.shift), dims=(1, 2))
            mask = shifted_mask(height, width, side, self.shift, x.device)
        y = y.view(n, rows, side, columns, side, features).transpose(2, 3).reshape(n, rows * columns, side**2, features)
        y = self.attn(y, mask)  # (N, windows, pixels, F)
        y = y.view(n, rows, columns, side, side, features).transpose(2, 3).reshape(n, height, width, features)
        x = x + (y.roll((self.shift, self.shift), dims=(1, 2)) if self.shift else y)
        return x + self.mlp(self.norm2(x))


class _Attention(nn.Module):
    """Multi-head self-attention with a bias for each relative position.

    Shapes: x (N, windows, pixels, F), mask (windows, pixels, pixels) or None -> (N, windows, pixels, F).
    """

    index: Tensor

    def __init__(self, num_features: int, num_heads: int, window: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.register_buffer("index", relative_positions(window), persistent=False)
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.qkv = nn.Linear(num_features, 3 * num_features)
        self.proj = nn.Linear(num_features, num_features)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        n, windows, pixels, features = x.shape
        qkv = self.qkv(x).view(n, windows, pixels, 3, self.num_heads, -1)
        query, key, value = qkv.permute(3, 0, 1, 4, 2, 5)  # each (N, windows, heads, pixels, F / heads)
        bias = self.relative_position_bias_table[self.index].permute(2, 0, 1)  # (heads, pixels, pixels)
        if mask is not None:
            bias = bias + mask[:, None]  # (windows, heads, pixels, pixels)
        y = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype))
        return self.proj(y.transpose(2, 3).reshape(n, windows, pixels, features))


class _Perceptron(nn.Module):
    def __init__(self, num_features: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(num_features, hidden)
        self.fc2 = nn.Linear(hidden, num_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


def relative_positions(window: int) -> Tensor:
    """Return the index of the relative position of each two pixels of a window, (window**2, window**2)."""
    rows, columns = (each.flatten() for each in torch.meshgrid(*[torch.arange(window)] * 2, indexing="ij"))
    down = rows[:, None] - rows + window - 1
    right = columns[:, None] - columns + window - 1
    return down * (2 * window - 1) + right


def shifted_mask(height: int, width: int, window: int, shift: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the mask of the windows of a rolled image, in which pixels of opposite borders become neighbours.

    Args:
        height: Of the image, a multiple of `window`.
        width: Of the image, a multiple of `window`.
        window: Side of a window.
        shift: Pixels by which the image is rolled.
        device: On which the mask is made; a CUDA graph has no copies from the host.

    Returns:
        (windows, window**2, window**2): 0 for two pixels that may see each other, -100 for others.
    """
    part_of_row, part_of_column = (_parts(side, window, shift, device) for side in (height, width))
    part = 3 * part_of_row[:, None] + part_of_column  # (H, W)
    part = part.view(height // window, window, width // window, window).transpose(1, 2).flatten(2).flatten(0, 1)
    return (part[:, :, None] != part[:, None]).float() * -100


def _parts(side: int, window: int, shift: int, device: torch.device | str) -> Tensor:
    """Number the parts of a rolled side: 0, and 1 and 2 for the two that share the last window."""
    place = torch.arange(side, device=device)
    return (place >= side - window).long() + (place >= side - shift)


def _reach(num_groups: int, num_blocks: int, window: int) -> int:
    """Compute the LR pixels that a pixel's output depends on in one direction, at the worst place of a window."""

    def grow(low: int, shift: int) -> int:  # the first pixel of the window that holds pixel `low`
        return (low + shift) // window * window - shift

    reach = 0
    for start in range(window):
        low = start - 2  # the upsampling convolution and the one after the groups
        for _ in range(num_groups):
            low -= 1  # the group's convolution
            for i in reversed(range(num_blocks)):
                low = grow(low, window // 2 if i % 2 else 0)
        reach = max(reach, start - low + 1)  # the first convolution
    return reach
