"""PSNR and SSIM of batches of images, equal to BasicSR's calculate_psnr and calculate_ssim but faster."""

from lnca_model.metrics.batch_metric import check_sizes
from lnca_model.metrics.psnr import calculate_psnr_batch
from lnca_model.metrics.ssim import calculate_ssim_batch

BATCH_METRICS = (calculate_psnr_batch.__name__, calculate_ssim_batch.__name__)

__all__ = ['BATCH_METRICS', 'calculate_psnr_batch', 'calculate_ssim_batch', 'check_sizes']
