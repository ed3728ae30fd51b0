"""Adversarial losses of the generator and the discriminator, as functions of the discriminator's logits."""

from abc import ABC, abstractmethod

from torch import Tensor
from torch.nn import functional as F


class Adversarial(ABC):
    """A pair of losses on logits of any shape (one value per image or per patch). Stateless, computed in float32.

    Attributes:
        generator_needs_hr: True if the generator's loss depends on the logits of hr; otherwise they may be None.
    """

    generator_needs_hr = False

    @abstractmethod
    def generator(self, sr_logits: Tensor, hr_logits: Tensor | None = None) -> Tensor:
        """Generator loss, a scalar: low if the discriminator takes sr for real. No gradient flows to `hr_logits`."""

    @abstractmethod
    def discriminator(self, sr_logits: Tensor, hr_logits: Tensor) -> Tensor:
        """Discriminator loss, a scalar: low if the logits separate hr from sr."""

    @abstractmethod
    def realness(self, logits: Tensor) -> Tensor:
        """Mean realness of images according to the discriminator, a scalar from 0 (generated) to 1 (real)."""


class Vanilla(Adversarial):
    """Binary cross entropy with labels 1 (hr) and 0 (sr).

    Generative Adversarial Nets, Goodfellow et al. 2014, section 3 (arXiv 1406.2661), as used by SRGAN (Ledig et al.
    2017, equations 2 and 6, arXiv 1609.04802). The generator minimises the non-saturating -log D(sr); the
    discriminator's loss is the sum over hr and sr.
    """

    def generator(self, sr_logits: Tensor, hr_logits: Tensor | None = None) -> Tensor:
        return _bce_real(sr_logits)

    def discriminator(self, sr_logits: Tensor, hr_logits: Tensor) -> Tensor:
        return _bce_real(hr_logits) + _bce_fake(sr_logits)

    def realness(self, logits: Tensor) -> Tensor:
        """Mean probability of being real."""
        return logits.float().sigmoid().mean()


class LeastSquares(Adversarial):
    """Squared distance to 1 (hr) and 0 (sr): 0.5 * ((D(hr) - 1)² + D(sr)²), and 0.5 * (D(sr) - 1)² for the generator.

    Least Squares Generative Adversarial Networks, Mao et al. 2017, equation 9 (arXiv 1611.04076). D is the logit,
    without a sigmoid.
    """

    def generator(self, sr_logits: Tensor, hr_logits: Tensor | None = None) -> Tensor:
        return 0.5 * (sr_logits.float() - 1).square().mean()

    def discriminator(self, sr_logits: Tensor, hr_logits: Tensor) -> Tensor:
        return 0.5 * ((hr_logits.float() - 1).square().mean() + sr_logits.float().square().mean())

    def realness(self, logits: Tensor) -> Tensor:
        """Mean of the logits, each clamped to [0, 1]."""
        return logits.float().clamp(0, 1).mean()


class RelativisticAverage(Adversarial):
    """Binary cross entropy of one image being more real than the average of the other kind.

    ESRGAN, Wang et al. 2018, section 3.2, equations 1 and 2 (arXiv 1809.00219), after Jolicoeur-Martineau 2018 (arXiv
    1807.00734). Both losses are sums of two terms, as in the paper. The authors' code (BasicSR) halves the
    discriminator's and the generator's sum: its generator weight of 5e-3 corresponds to 2.5e-3 here.
    """

    generator_needs_hr = True

    def generator(self, sr_logits: Tensor, hr_logits: Tensor | None = None) -> Tensor:
        if hr_logits is None:
            raise ValueError("RelativisticAverage.generator needs hr_logits, the discriminator's logits of hr")
        sr_logits, hr_logits = sr_logits.float(), hr_logits.detach().float()
        return _bce_real(sr_logits - hr_logits.mean()) + _bce_fake(hr_logits - sr_logits.mean())

    def discriminator(self, sr_logits: Tensor, hr_logits: Tensor) -> Tensor:
        sr_logits, hr_logits = sr_logits.float(), hr_logits.float()
        return _bce_real(hr_logits - sr_logits.mean()) + _bce_fake(sr_logits - hr_logits.mean())

    def realness(self, logits: Tensor) -> Tensor:
        """Mean sigmoid. Only the difference between hr and sr is meaningful: the loss does not fix the zero."""
        return logits.float().sigmoid().mean()


class Hinge(Adversarial):
    """Mean of max(0, 1 - D(hr)) + max(0, 1 + D(sr)) for the discriminator, mean of -D(sr) for the generator.

    Geometric GAN, Lim and Ye 2017, section 4 (arXiv 1705.02894); Spectral Normalization for GANs, Miyato et al. 2018,
    equations 16 and 17 (arXiv 1802.05957).
    """

    def generator(self, sr_logits: Tensor, hr_logits: Tensor | None = None) -> Tensor:
        return -sr_logits.float().mean()

    def discriminator(self, sr_logits: Tensor, hr_logits: Tensor) -> Tensor:
        return F.relu(1 - hr_logits.float()).mean() + F.relu(1 + sr_logits.float()).mean()

    def realness(self, logits: Tensor) -> Tensor:
        """Mean position of the logits between the margins -1 (0) and 1 (1), each clamped to [0, 1]."""
        return ((logits.float() + 1) / 2).clamp(0, 1).mean()


def _bce_real(logits: Tensor) -> Tensor:
    """Binary cross entropy with label 1: the mean of -log sigmoid(logits)."""
    return F.softplus(-logits.float()).mean()


def _bce_fake(logits: Tensor) -> Tensor:
    """Binary cross entropy with label 0: the mean of -log(1 - sigmoid(logits))."""
    return F.softplus(logits.float()).mean()
