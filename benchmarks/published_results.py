"""The published numbers (Menta et al., 2024, arXiv:2403.15525)."""

from itertools import product

NETWORKS = ('NAFNet', 'Restormer', 'ViTCA', 'LatentViTCA', 'LatentNAFCA')
SIZES, BATCHES = (32, 64, 128), (8, 16, 32)

# Tables 1 and 2: SSIM, tasks in the order of the paper's columns.
_SSIM = {
    ('celeba_denoise', 'cifar10_denoise', 'tinyimagenet_denoise', 'renoir', 'sid'): {
        'NAFNet': (0.958, 0.924, 0.837, 0.962, 0.752),
        'Restormer': (0.967, 0.918, 0.880, 0.965, 0.781),
        'ViTCA': (0.942, 0.910, 0.852, 0.939, 0.647),
        'LatentViTCA': (0.889, 0.855, 0.802, 0.877, 0.646),
        'LatentNAFCA': (0.837, 0.833, 0.776, 0.880, 0.652),
    },
    ('celeba_deblur', 'cifar10_deblur', 'tinyimagenet_deblur', 'gopro', 'realblur'): {
        'NAFNet': (0.986, 0.970, 0.962, 0.908, 0.869),
        'Restormer': (0.993, 0.977, 0.975, 0.934, 0.918),
        'ViTCA': (0.941, 0.903, 0.870, 0.773, 0.814),
        'LatentViTCA': (0.769, 0.752, 0.672, 0.739, 0.772),
        'LatentNAFCA': (0.745, 0.739, 0.673, 0.739, 0.771),
    },
}
#: (folder of the packed dataset, network) → SSIM.
SSIM = {
    (task, network): value
    for tasks, rows in _SSIM.items()
    for network, values in rows.items()
    for task, value in zip(tasks, values, strict=True)
}

# Tables 3, 4 and 5, on an A100 of 80 GB; None where that was not enough.
_EFFICIENCY = {
    'training memory, GB': {
        'NAFNet': (4.1, 4.1, 4.2, 4.2, 8.2, 8.8, 8.7, 19.6, 35.0),
        'Restormer': (4.4, 4.4, 8.5, 8.8, 16.8, 32.9, 32.8, 65.6, None),
        'ViTCA': (8.7, 16.9, 33.8, 33.8, 65.6, None, None, None, None),
        'LatentViTCA': (0.5, 1.1, 1.2, 2.2, 4.4, 4.7, 8.7, 16.9, 17.4),
        'LatentNAFCA': (0.5, 0.5, 1.1, 1.1, 2.1, 4.1, 4.1, 8.2, 16.4),
    },
    'training epoch, s': {
        'NAFNet': (25.1, 13.3, 7.9, 22.8, 13.0, 9.0, 28.8, 19.0, 15.7),
        'Restormer': (21.7, 11.9, 7.9, 25.2, 18.9, 16.8, 59.9, 57.1, None),
        'ViTCA': (21.7, 18.5, 17.5, 69.9, 61.6, None, None, None, None),
        'LatentViTCA': (14.9, 8.9, 4.9, 16.6, 11.8, 8.4, 30.0, 21.8, 16.4),
        'LatentNAFCA': (24.5, 14.5, 7.2, 17.1, 11.4, 7.4, 21.2, 14.8, 10.2),
    },
    'inference, s': {
        'NAFNet': (0.25, 0.24, 0.25, 0.24, 0.24, 0.24, 0.24, 0.25, 0.25),
        'Restormer': (0.56, 0.53, 0.54, 0.54, 0.55, 0.58, 0.58, 0.68, 0.93),
        'ViTCA': (1.47, 1.42, 1.45, 1.43, 1.46, 2.00, 2.01, 2.96, 5.17),
        'LatentViTCA': (1.45, 1.45, 1.46, 1.43, 1.43, 1.41, 1.43, 1.44, 1.42),
        'LatentNAFCA': (0.59, 0.60, 0.60, 0.59, 0.60, 0.59, 0.59, 0.60, 0.59),
    },
}
#: (quantity, network, size, batch) → value or None.
EFFICIENCY = {
    (quantity, network, size, batch): value
    for quantity, rows in _EFFICIENCY.items()
    for network, values in rows.items()
    for (size, batch), value in zip(product(SIZES, BATCHES), values, strict=True)
}
