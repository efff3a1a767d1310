package check

import (
	"fmt"
	"io"
	"text/tabwriter"
)

// Print writes the results as a table, misses explained below it.
func Print(w io.Writer, results []Result) (misses int, err error) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "\tCHECK\tREQUEST\tEXPECTED\tGOT\tRULE THAT REFUSED\tWHERE")
	for _, r := range results {
		mark := "ok"
		if !r.Pass {
			mark = "MISS"
			misses++
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", mark, r.Name, r.Request, r.Expected, r.Got, Dash(r.Rule), Dash(r.Where))
	}
	if err := tw.Flush(); err != nil {
		return misses, err
	}
	for _, r := range results {
		if !r.Pass {
			fmt.Fprintf(w, "MISS %s: %s\n", r.Name, r.Why)
		}
	}
	_, err = fmt.Fprintf(w, "%d of %d as expected\n", len(results)-misses, len(results))
	return misses, err
}

// Dash is s, or - for nothing, as tables have it.
func Dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
