package cli

import (
	"context"
	"fmt"
	"io"

	pilotpb "github.com/writ-mesh/writ/proto/writ/pilot/v1"
	ratelimitpb "github.com/writ-mesh/writ/proto/writ/ratelimit/v1"
)

// declareQuotas adds to a status what the limits of QuotaPolicies let pass at worst, as
// ratelimit declares it. If that does not answer the status says so; the rest is told.
func declareQuotas(ctx context.Context, dir, state string, st *pilotpb.GetStatusResponse) {
	conn, err := admin(dir, state, "ratelimit")
	if err != nil {
		return
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	addQuotas(ctx, ratelimitpb.NewLimitsClient(conn), st)
}

func addQuotas(ctx context.Context, l ratelimitpb.LimitsClient, st *pilotpb.GetStatusResponse) {
	resp, err := l.ListLimits(ctx, &ratelimitpb.ListLimitsRequest{})
	if err != nil {
		st.Problems = append(st.Problems, &pilotpb.Problem{Severity: "warning", Message: fmt.Sprintf("ratelimit does not tell how its limits are counted: %v", err)})
		return
	}
	for _, d := range resp.GetLimits() {
		st.Quotas = append(st.Quotas, &pilotpb.QuotaDeclaration{Limit: d.GetLimit(), Counted: d.GetCounted()})
	}
}

// printQuotas says how much more than limits may pass.
func printQuotas(out io.Writer, all []*pilotpb.QuotaDeclaration) {
	if len(all) == 0 {
		return
	}
	fmt.Fprintln(out, "\nQUOTAS (where they are counted, and how much passes at worst)")
	for _, q := range all {
		fmt.Fprintf(out, "  %s: counted %s\n", q.GetLimit(), q.GetCounted())
	}
}
