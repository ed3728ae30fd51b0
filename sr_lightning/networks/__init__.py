"""Networks, `network(lr) -> sr`, and discriminators, `discriminator(sr) -> logits`: one paper, one file, one class."""

from sr_lightning.networks.bicubic import Bicubic
from sr_lightning.networks.compact import Compact
from sr_lightning.networks.edsr import EDSR
from sr_lightning.networks.edsr_bn import EDSRBN
from sr_lightning.networks.espcn import ESPCN
from sr_lightning.networks.fsrcnn import FSRCNN
from sr_lightning.networks.msrresnet import MSRResNet
from sr_lightning.networks.patch_discriminator import PatchDiscriminator
from sr_lightning.networks.plksr import PLKSR
from sr_lightning.networks.rcan import RCAN
from sr_lightning.networks.realplksr import RealPLKSR
from sr_lightning.networks.rrdbnet import RRDBNet
from sr_lightning.networks.safmn import SAFMN
from sr_lightning.networks.span import SPAN
from sr_lightning.networks.srcnn import SRCNN
from sr_lightning.networks.srgan_discriminator import SRGANDiscriminator
from sr_lightning.networks.srresnet import SRResNet
from sr_lightning.networks.swinir import SwinIR
from sr_lightning.networks.unet_discriminator import UNetDiscriminator
from sr_lightning.networks.vdsr import VDSR
from sr_lightning.networks.wdsr import WDSR

__all__ = [
    "EDSR",
    "EDSRBN",
    "ESPCN",
    "FSRCNN",
    "PLKSR",
    "RCAN",
    "SAFMN",
    "SPAN",
    "SRCNN",
    "VDSR",
    "WDSR",
    "Bicubic",
    "Compact",
    "MSRResNet",
    "PatchDiscriminator",
    "RRDBNet",
    "RealPLKSR",
    "SRGANDiscriminator",
    "SRResNet",
    "SwinIR",
    "UNetDiscriminator",
]
