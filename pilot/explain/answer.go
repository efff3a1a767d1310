package explain

import (
	"fmt"

	"github.com/writ-mesh/writ/pilot/model"
)

// Decisions.
const (
	Allowed = "allowed"
	Refused = "refused"
	// Depends means that somebody else has a say: see the steps.
	Depends = "depends"
)

// Answer is what becomes of a request.
type Answer struct {
	Question Question `json:"question"`
	// From is the caller's SPIFFE ID without scheme, empty without one.
	From    string   `json:"from,omitempty"`
	Targets []Target `json:"targets"`
}

// Decision is that of all targets, or Depends if they differ.
func (a *Answer) Decision() string {
	all := a.Targets[0].Decision
	for _, t := range a.Targets[1:] {
		if t.Decision != all {
			return Depends
		}
	}
	return all
}

// Target is one workload that may get the request, with others of which the same holds.
type Target struct {
	Workload string `json:"workload"`
	Port     uint32 `json:"port"`
	Decision string `json:"decision"`
	// Status is what the caller of a refused HTTP request gets.
	Status int `json:"status,omitempty"`
	// By is what decided, as x-writ-denied-by has it for a refusal.
	By string `json:"by,omitempty"`
	// At is the place of that: file and line.
	At    string `json:"at,omitempty"`
	Steps []Step `json:"steps"`
	Near  []Near `json:"near,omitempty"`
	// Unknown is what cannot be told from files, and is taken for harmless.
	Unknown []string `json:"unknown,omitempty"`
}

// Step is one thing that is asked on the way, in order.
type Step struct {
	// Name is the kind of question: PeerAuthentication, CUSTOM and so on.
	Name string `json:"name"`
	// Result is one of the decisions, or "no policy", "recorded", "not decided".
	Result string `json:"result"`
	// Runs is where it is decided.
	Runs   string `json:"runs"`
	By     string `json:"by,omitempty"`
	At     string `json:"at,omitempty"`
	Detail string `json:"detail,omitempty"`
}

// Near is a rule that would match if it were not for one condition.
type Near struct {
	Action string `json:"action"`
	Rule   string `json:"rule"`
	At     string `json:"at,omitempty"`
	// Field is the condition, Wants what it wants, Has what the request has.
	Field string `json:"field"`
	Wants string `json:"wants"`
	Has   string `json:"has"`
	Runs  string `json:"runs"`
}

// place is file and line of an object.
func place(r model.Ref) string {
	if r.File == "" {
		return ""
	}
	return fmt.Sprintf("%s:%d", r.File, r.Line)
}

// ruleName is how refusals name a rule.
func ruleName(m *model.Meta, rule int) string { return fmt.Sprintf("%s rule %d", m.ID(), rule) }

// rulePlace is file and line of a rule, or of its object.
func rulePlace(m *model.Meta, rule int) string {
	r := m.Ref
	if rule < len(m.RuleLines) && m.RuleLines[rule] > 0 {
		r.Line = m.RuleLines[rule]
	}
	return place(r)
}
