"""Transformers' tests of causal language models on InternLM2; the native model beside it is Llama."""

import unittest

import pytest
from scaffold import InternLM2Config, InternLM2ForCausalLM, InternLM2Model


tester = pytest.importorskip(
    "tests.causal_lm_tester", reason="the source distribution lacks tests/causal_lm_tester.py"
)


class InternLM2Tester(tester.CausalLMModelTester):
    config_class, base_model_class, causal_lm_class = InternLM2Config, InternLM2Model, InternLM2ForCausalLM


class InternLM2Test(tester.CausalLMModelTest, unittest.TestCase):
    model_tester_class = InternLM2Tester
    test_can_init_all_missing_weights_before_2023 = True
    pipeline_model_mapping = {}
