"""Makes a frozen program a reader process if it was started as one, before it runs itself."""

import sys

if sys.argv[1:2] == ["--mt3-reader-process"]:
    from mt3_runtime.reading.reader_child import main

    main()
