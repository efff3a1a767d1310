package bundle

import (
	"context"
	"errors"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/plugins/logs"
	"github.com/open-policy-agent/opa/v1/server"

	"github.com/writ-mesh/writ/authz/rego"
)

// Decision is one decision for OPA's decision log.
type Decision struct {
	ID string
	// Path or Query is what was asked, as it is configured.
	Path, Query string
	// Snapshot is what decided.
	Snapshot *Snapshot
	// Input is nil if the request could not be turned into one.
	Input *rego.Input
	// Result is the policy's, unless Err says why there is none.
	Result any
	Err    error
}

// Logs says whether decision logs are configured.
func (m *Manager) Logs() bool { return logs.Lookup(m.opa) != nil }

// Log hands a decision without its credentials to OPA's plugin, which masks, drops, buffers and sends as
// configured. Without decision_logs it does nothing.
func (m *Manager) Log(ctx context.Context, d Decision) error {
	plugin := logs.Lookup(m.opa)
	if plugin == nil {
		return nil
	}
	info := &server.Info{
		DecisionID: d.ID, Path: d.Path, Query: d.Query, Timestamp: time.Now().UTC(),
		Bundles: make(map[string]server.BundleInfo),
	}
	if d.Snapshot != nil {
		for name, revision := range d.Snapshot.Revisions {
			info.Bundles[name] = server.BundleInfo{Revision: revision}
		}
	}
	if d.Input != nil {
		document := redact(d.Input.Document(), m.redactor)
		input, err := ast.JSON(document)
		if err != nil {
			return err
		}
		info.Input, info.InputAST = &input, document
	}
	if d.Err != nil {
		info.Error = logError{d.Err.Error()}
	} else {
		info.Results = &d.Result
	}
	if err := plugin.Log(ctx, info); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// logError is an error that JSON shows.
type logError struct {
	Message string `json:"message"`
}

func (e logError) Error() string { return e.Message }
