import pytest

from bcss_jax.data.names import stated_patient


@pytest.mark.parametrize(
    "name, patient",
    (
        ("TCGA-A2-A0D2-DX1_xmin1", "TCGA-A2-A0D2"),
        ("tcga-a2-a0d2_1", "TCGA-A2-A0D2"),
        ("pat08_visit1", "pat08"),
        ("Patient-8", "patient-8"),
        ("sub-01_ses-2", "sub-01"),
        ("subject_3.left", "subject_3"),
        ("patch_01", None),
        ("pat08a_1", None),
        ("case_00", None),
        ("slide3_tile0", None),
        ("P08_1", None),
        ("submucosa_1", None),
        ("", None),
    ),
)
def test_a_patient_is_told_only_by_names_that_say_one(name, patient):
    assert stated_patient(name) == patient
