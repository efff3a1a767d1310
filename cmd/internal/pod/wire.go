package pod

import "net/http"

// Request is an HTTP request to send. It is what `writ-pod request` reads from
// its standard input, as JSON.
type Request struct {
	Method  string            `json:"method"`
	URL     string            `json:"url"`
	Headers map[string]string `json:"headers,omitempty"`
	Body    string            `json:"body,omitempty"`
	// Repeat sends it so many times, and the last answer counts; 0 is once.
	Repeat int `json:"repeat,omitempty"`
}

// Answer is what came back, or why no whole answer did. `writ-pod request` writes
// it to its standard output, as JSON.
type Answer struct {
	Status int         `json:"status,omitempty"`
	Header http.Header `json:"header,omitempty"`
	Body   string      `json:"body,omitempty"`
	Error  string      `json:"error,omitempty"`
	// Timeout says that the error is one of time.
	Timeout bool `json:"timeout,omitempty"`
}
