"""Transformers' common tests on the tokenizer, the image processor and the processor of the embedded checkpoint.

The native classes' own suites download their checkpoints, so nothing runs beside these.
"""

import unittest

from scaffold import FOLDER, trust
from tests.test_image_processing_common import ImageProcessingTester, ImageProcessingTestMixin
from tests.test_processing_common import ProcessorTesterMixin
from tests.test_tokenization_common import TokenizerTesterMixin
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer


trust()
TOKENIZER = type(AutoTokenizer.from_pretrained(FOLDER, trust_remote_code=True))
IMAGE_PROCESSOR = type(AutoImageProcessor.from_pretrained(FOLDER, trust_remote_code=True))
PROCESSOR = type(AutoProcessor.from_pretrained(FOLDER, trust_remote_code=True))
IMAGE_SETTINGS = {
    "tile_size": 28,
    "patch_size": 7,
    "max_tiles": 1,
    "use_thumbnail": False,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


class TokenizerTest(TokenizerTesterMixin, unittest.TestCase):
    tokenizer_class = TOKENIZER
    from_pretrained_id = [FOLDER]
    test_tokenizer_from_extractor = False
    test_sentencepiece = True
    test_seq2seq = False


class ImageTester(ImageProcessingTester):
    """Draws images smaller and larger than a tile; one tile each."""

    def __init__(self, parent):
        super().__init__(parent, batch_size=3, min_resolution=20, max_resolution=60, **IMAGE_SETTINGS)
        self.size = {"height": IMAGE_SETTINGS["tile_size"], "width": IMAGE_SETTINGS["tile_size"]}

    def _get_image_processing_classes(self):
        return {"pil": IMAGE_PROCESSOR}


class ImageProcessorTest(ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = ImageTester


class ProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = PROCESSOR
    model_id = FOLDER
    videos_input_name = "pixel_values"
    # A tile of the embedded checkpoint takes 64 tokens, and several tiles are cut.
    images_unstructured_max_length = 276
    images_text_kwargs_max_length = 317
    images_text_kwargs_override_max_length = 312

    @classmethod
    def _setup_test_attributes(cls, processor):
        cls.image_token, cls.video_token = "<image>", "<video>"
