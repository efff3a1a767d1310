package attest

// StartTime and ParseStartTime are for tests.
var (
	StartTime      = startTime
	ParseStartTime = parseStartTime
)
