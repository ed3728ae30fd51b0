from sr_lightning.utils.markdown import markdown_table


def test_columns_are_as_wide_as_their_widest_cell():
    assert markdown_table([["a", "long"], ["wider", "b"]]).splitlines() == [
        "| a     | long |",
        "| ----- | ---- |",
        "| wider | b    |",
    ]
