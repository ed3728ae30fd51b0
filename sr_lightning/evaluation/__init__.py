"""Scoring of networks on images: tables, comparison pictures and report.html."""
