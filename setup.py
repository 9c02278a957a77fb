"""Packaging. Where it is not obvious, a comment says why a dependency is there."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name='lnca',
    version='0.1.0',
    description='Latent neural cellular automata for image restoration, as a plug-in for BasicSR',
    long_description=(Path(__file__).parent / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='MIT',
    python_requires='>=3.10,<3.13',  # BasicSR's own setup.py does not run on 3.13 and later
    # basicsr/ is left out: it holds the two commands, and the package of that name is BasicSR's.
    packages=[*find_packages(include=['lnca', 'lnca.*', 'lnca_*']), 'lnca.options'],
    package_dir={'lnca.options': 'options'},
    entry_points={'console_scripts': ['lnca = lnca.cli:main']},
    install_requires=[
        'torch>=2.6,<3',  # from 2.6 on, torch.load does not run code that a checkpoint holds
        'torchvision>=0.21,<1',  # the partner of torch 2.6
        'basicsr>=1.4.2,<2',
        'lmdb>=2.1.1,<4',  # 2.1.1 closes five holes in reading somebody else's LMDB (CVE-2019-16224 to -16228)
        'opencv-python>=5,<6',  # 4.12 and 4.14 rotate some blur kernels otherwise than the reference's golden numbers
        'pyyaml>=6,<7',
        'jsonschema>=4.20,<5',  # option files are held against the schema that editors use
        'scikit-image>=0.22,<1',  # bundled photographs, to train on and to test with
        'scikit-learn>=1.3,<2',  # two more, to test with
        'numpy>=2,<3',
        'pillow>=10,<14',
        'tifffile>=2023.1',  # TIFFs with what belongs to them: OpenCV drops it, Pillow reads 8 bits only
        'imagecodecs>=2023.1',  # with which tifffile decodes compressed ones
        'safetensors>=0.4,<1',
        'imagehash>=4.3,<5',  # perceptual hashes, to find near-duplicate tiles
        'rawpy>=0.19,<1',  # LibRaw, for the raw photographs of SID
        'psutil>=5.9,<8',  # free memory, before tiles are kept in it
        'spandrel>=0.4.1,<0.5',  # NAFNet
        'tqdm>=4.66,<5',
        'typing_extensions>=4.12,<5',  # override, before Python 3.12
    ],
    package_data={
        '': ['py.typed'],
        'lnca.options': ['*.yml', '*.json', '*.jinja', 'networks/*.yml'],
        'lnca_restore': ['weights/*'],
    },
    extras_require={
        'demo': ['gradio>=5.20,<6'],  # the page of inference/demo.py
        'onnx': ['onnx>=1.17,<2', 'onnxscript>=0.5,<1'],  # inference/export.py; onnxscript is what torch.onnx uses
        'benchmarks': ['matplotlib>=3.8,<4'],  # the charts of benchmarks/compare.py and efficiency.py
        # Restormer, whose licence forbids commercial use; who installs it shall have read so.
        'restormer-noncommercial': ['spandrel_extra_arches>=0.2,<1'],
        # mkdocs build; mkdocstrings reads the docstrings of docs/api.md from the source.
        'docs': ['mkdocs>=1.6,<2', 'mkdocs-material>=9.5,<10', 'mkdocstrings[python]>=1,<2'],
        'test': [
            'lnca[benchmarks,demo,onnx,restormer-noncommercial]',
            'pytest>=8,<10',
            'pytest-xdist>=3.6,<4',  # runs tests on all cores
            'hypothesis>=6.100,<7',  # feeds the parsers what nobody would write
            'onnxruntime>=1.20,<2',  # runs what was exported
            'selenium>=4.20,<5',  # drives a browser through the page
            'jinja2>=3.1,<4',  # generates the option files
        ],
        'dev': [
            'lnca[docs,test]',
            'ruff>=0.9,<1',
            'import-linter>=2.3,<3',
            'mypy>=1.18,<3',
            'types-PyYAML',
            'types-jsonschema',
            'types-psutil',
            'types-tqdm',
        ],
    },
)
