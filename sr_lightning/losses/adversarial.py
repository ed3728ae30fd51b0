"""Adversarial losses: what the generator and the discriminator want of the discriminator's logits."""

from abc import ABC, abstractmethod

from torch import Tensor
from torch.nn import functional as F


class Adversarial(ABC):
    """Two losses of logits of any shape, one value per image or per patch. Pure functions, computed in float32.

    Attributes:
        generator_needs_hr: Whether the generator's loss depends on the logits of hr; elsewhere they may be None.
    """

    generator_needs_hr = False

    @abstractmethod
    def generator(self, sr_logits: Tensor, hr_logits: Tensor | None = None) -> Tensor:
        """The scalar that falls as sr is taken for real. No gradient to `hr_logits`."""

    @abstractmethod
    def discriminator(self, sr_logits: Tensor, hr_logits: Tensor) -> Tensor:
        """The scalar that falls as sr and hr are told apart."""

    @abstractmethod
    def belief(self, logits: Tensor) -> Tensor:
        """How real the discriminator takes images to be: a scalar from 0 to 1, the mean over images and patches."""


class Vanilla(Adversarial):
    """Binary cross entropy with labels 1 (hr) and 0 (sr).

    Generative Adversarial Nets, Goodfellow et al. 2014, section 3 (arXiv 1406.2661), as SRGAN has it (Ledig et al.
    2017, equations 2 and 6, arXiv 1609.04802). The generator's is the one that does not saturate, -log D(sr); the
    discriminator's is the sum over both kinds of images.
    """

    def generator(self, sr_logits: Tensor, hr_logits: Tensor | None = None) -> Tensor:
        return _taken_for_real(sr_logits)

    def discriminator(self, sr_logits: Tensor, hr_logits: Tensor) -> Tensor:
        return _taken_for_real(hr_logits) + _taken_for_made(sr_logits)

    def belief(self, logits: Tensor) -> Tensor:
        """The mean probability."""
        return logits.float().sigmoid().mean()


class LeastSquares(Adversarial):
    """Squared distance to 1 (hr) and 0 (sr): 0.5 * ((D(hr) - 1)² + D(sr)²), and 0.5 * (D(sr) - 1)² for the generator.

    Least Squares Generative Adversarial Networks, Mao et al. 2017, equation 9 (arXiv 1611.04076). Logits are taken as
    they are, without a sigmoid.
    """

    def generator(self, sr_logits: Tensor, hr_logits: Tensor | None = None) -> Tensor:
        return 0.5 * (sr_logits.float() - 1).square().mean()

    def discriminator(self, sr_logits: Tensor, hr_logits: Tensor) -> Tensor:
        return 0.5 * ((hr_logits.float() - 1).square().mean() + sr_logits.float().square().mean())

    def belief(self, logits: Tensor) -> Tensor:
        """The mean logit, each kept within 0 and 1, the values for sr and hr."""
        return logits.float().clamp(0, 1).mean()


class RelativisticAverage(Adversarial):
    """Cross entropy of being more real than the mean of the other kind.

    ESRGAN, Wang et al. 2018, section 3.2, equations 1 and 2 (arXiv 1809.00219), after Jolicoeur-Martineau 2018 (arXiv
    1807.00734). Both losses are sums of two terms, as in the paper; the authors' code (BasicSR) takes half of them, so
    that its weight of 5e-3 for the generator is 2.5e-3 here.
    """

    generator_needs_hr = True

    def generator(self, sr_logits: Tensor, hr_logits: Tensor | None = None) -> Tensor:
        sr_logits, hr_logits = sr_logits.float(), hr_logits.detach().float()
        return _taken_for_real(sr_logits - hr_logits.mean()) + _taken_for_made(hr_logits - sr_logits.mean())

    def discriminator(self, sr_logits: Tensor, hr_logits: Tensor) -> Tensor:
        sr_logits, hr_logits = sr_logits.float(), hr_logits.float()
        return _taken_for_real(hr_logits - sr_logits.mean()) + _taken_for_made(sr_logits - hr_logits.mean())

    def belief(self, logits: Tensor) -> Tensor:
        """The mean sigmoid. Only hr's against sr's means something: the loss leaves the logits' zero open."""
        return logits.float().sigmoid().mean()


class Hinge(Adversarial):
    """The discriminator's max(0, 1 - D(hr)) + max(0, 1 + D(sr)), means; the generator's -D(sr).

    Geometric GAN, Lim and Ye 2017, section 4 (arXiv 1705.02894); Spectral Normalization for GANs, Miyato et al. 2018,
    equations 16 and 17 (arXiv 1802.05957).
    """

    def generator(self, sr_logits: Tensor, hr_logits: Tensor | None = None) -> Tensor:
        return -sr_logits.float().mean()

    def discriminator(self, sr_logits: Tensor, hr_logits: Tensor) -> Tensor:
        return F.relu(1 - hr_logits.float()).mean() + F.relu(1 + sr_logits.float()).mean()

    def belief(self, logits: Tensor) -> Tensor:
        """Where logits lie between the margins, -1 (0, made) and 1 (1, real), each kept within them."""
        return ((logits.float() + 1) / 2).clamp(0, 1).mean()


def _taken_for_real(logits: Tensor) -> Tensor:
    """Mean of -log sigmoid(logits)."""
    return F.softplus(-logits.float()).mean()


def _taken_for_made(logits: Tensor) -> Tensor:
    """Mean of -log(1 - sigmoid(logits))."""
    return F.softplus(logits.float()).mean()
