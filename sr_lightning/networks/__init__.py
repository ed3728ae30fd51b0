"""Networks, `network(lr) -> sr`, and discriminators, `discriminator(sr) -> logits`: one paper, one file, one class."""

from sr_lightning.networks.bicubic import Bicubic
from sr_lightning.networks.edsr import EDSR
from sr_lightning.networks.edsr_bn import EDSRBN
from sr_lightning.networks.espcn import ESPCN
from sr_lightning.networks.fsrcnn import FSRCNN
from sr_lightning.networks.msrresnet import MSRResNet
from sr_lightning.networks.patch_discriminator import PatchDiscriminator
from sr_lightning.networks.rcan import RCAN
from sr_lightning.networks.srcnn import SRCNN
from sr_lightning.networks.srgan_discriminator import SRGANDiscriminator
from sr_lightning.networks.srresnet import SRResNet
from sr_lightning.networks.vdsr import VDSR
from sr_lightning.networks.wdsr import WDSR

__all__ = [
    "EDSR",
    "EDSRBN",
    "ESPCN",
    "FSRCNN",
    "RCAN",
    "SRCNN",
    "VDSR",
    "WDSR",
    "Bicubic",
    "MSRResNet",
    "PatchDiscriminator",
    "SRGANDiscriminator",
    "SRResNet",
]
