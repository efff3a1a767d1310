package meshdir

import (
	"regexp"
	"slices"

	"github.com/writ-mesh/writ/pilot/model"
	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
)

// planNameForm is what tables of plans and their columns are called.
var planNameForm = regexp.MustCompile(configpb.PlanName)

// quotaPlan names the table that has the callers' numbers.
type quotaPlan struct {
	Table   string `json:"table"`
	By      string `json:"by"`
	Numbers string `json:"numbers"`
}

// checkPlan checks where a limit's numbers come from; at is the limit's place.
func (c *checker) checkPlan(at string, limit *quotaLimit) {
	p := limit.Plan
	if p == nil {
		return
	}
	at += ".plan"
	c.checkTable(at, p.Table, p.Numbers)
	d, problem := parseDimension(p.By)
	switch {
	case p.By == "":
		c.errorf(at+".by", "it is missing: say which entry of per is the caller in the table")
	case !slices.Contains(limit.Per, p.By):
		c.errorf(at+".by", "%q is not in per: callers whose plans differ must be counted apart; add it there", shorten(p.By))
	case problem == "" && d.Kind == "constant":
		c.errorf(at+".by", "%q is the same for all requests: write what tells callers apart, such as source.principal or request.auth.claims[sub]", shorten(p.By))
	}
}

// checkTable checks the names of a table and of its column; at is where they stand.
func (c *checker) checkTable(at, table, column string) {
	switch {
	case table == "":
		c.errorf(at+".table", "it is missing: name the table of callers, which ratelimit reads from plans/<table>.plans or from Redis")
	case !planNameForm.MatchString(table):
		c.errorf(at+".table", "%q is no name of a table: write small letters, digits and dashes", shorten(table))
	}
	if column != "" && !planNameForm.MatchString(column) {
		c.errorf(at+".numbers", "%q is no name of a column: write small letters, digits and dashes", shorten(column))
	}
}

// value gives the plan of a checked limit.
func (q *quotaPlan) value() *model.QuotaPlan {
	if q == nil {
		return nil
	}
	return &model.QuotaPlan{Table: q.Table, By: q.By, Numbers: q.Numbers}
}
