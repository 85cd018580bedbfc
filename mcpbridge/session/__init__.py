"""One client bound to one backend: permits, lifecycle, and the table of live sessions."""
