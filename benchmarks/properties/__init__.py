"""What each property keeps and costs: defect, change by a merge, directions, a step and a merge, as one table."""
