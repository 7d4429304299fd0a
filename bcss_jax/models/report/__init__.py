"""The networks of the report's own code, which differ from the networks that the report's text names.

Source: facts about github.com/TristanLecourtois/semantic-segmentation at commit c4cd531, whose state_dicts load through
`bcss_jax.models.weights.pretrained`. docs/reproducing_the_report.md lists the differences.
"""
