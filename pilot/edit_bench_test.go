package pilot

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/writ-mesh/writ/pilot/meshdir"
	"github.com/writ-mesh/writ/pilot/model"
	"github.com/writ-mesh/writ/pilot/xds"
)

// BenchmarkOnePolicyOfMany edits one AuthorizationPolicy of a workload with 10,000, in a
// mesh where two more workloads have 10,000 each, and reads and compiles the mesh again.
// It reports processor time, of garbage collection too, which is what counts where
// others use the machine.
func BenchmarkOnePolicyOfMany(b *testing.B) {
	const many = 10_000
	dir := b.TempDir()
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			b.Fatal(err)
		}
	}
	var instances []meshdir.Instance
	for i, kind := range []string{"principals", "paths", "both"} {
		for j, n := range []int{10, many} {
			name := fmt.Sprintf("%s%d", kind, n)
			instances = append(instances, meshdir.Instance{Name: name + "-1", Namespace: "default", Labels: map[string]string{"app": name}, Spec: meshdir.InstanceSpec{
				ServiceAccount: "b", Address: fmt.Sprintf("127.9.%d.%d", i, j+1), Ports: []meshdir.InstancePort{{Name: "http", Port: 8000, App: 9000}},
			}})
			for first := 0; first < n; first += 1000 {
				var text strings.Builder
				for k := first; k < min(first+1000, n); k++ {
					fmt.Fprintf(&text, "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: %[1]s-%[2]d, namespace: default}\nspec: {selector: {matchLabels: {app: %[1]s}}, rules: [%[3]s]}\n", name, k, manyRule(kind, k))
				}
				write(fmt.Sprintf("%s-%d.yaml", name, first), text.String())
			}
		}
	}
	data, err := meshdir.MarshalInstances(instances)
	if err != nil {
		b.Fatal(err)
	}
	file := filepath.Join(b.TempDir(), "instances.yaml")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		b.Fatal(err)
	}
	edit := func(i int) {
		write("edited.yaml", fmt.Sprintf("apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: edited, namespace: default}\nspec: {selector: {matchLabels: {app: paths%d}}, rules: [{to: [{operation: {paths: [/edited-%d]}}]}]}\n", many, i))
	}
	edit(0)
	r := meshdir.NewReader(meshdir.Options{Dir: dir, InstancesFile: file})
	also := besides{revoked: new(model.Revoked)}
	var current *compiled
	var spent struct{ read, compile time.Duration }
	round := func() {
		begin := processorTime(b)
		mesh, changed, problems := r.Read()
		if !changed || len(meshdir.Errors(problems)) > 0 {
			b.Fatal(changed, problems)
		}
		read := processorTime(b)
		var earlier []*xds.Snapshot
		if current != nil {
			earlier = append(earlier, current.snapshot)
		}
		next, err := compile(mesh, also, xds.NewBuilder(earlier...), current)
		if err != nil || len(next.failed) > 0 || current != nil && next.snapshot.Hash == current.snapshot.Hash {
			b.Fatal(err)
		}
		current = next
		spent.read += read - begin
		spent.compile += processorTime(b) - read
	}
	round()
	spent.read, spent.compile = 0, 0
	for i := 1; b.Loop(); i++ {
		edit(i)
		round()
	}
	b.ReportMetric(float64(spent.read.Milliseconds())/float64(b.N), "read-cpu-ms/op")
	b.ReportMetric(float64(spent.compile.Milliseconds())/float64(b.N), "compile-cpu-ms/op")
}

func manyRule(kind string, i int) string {
	if kind == "principals" || kind == "both" && i%2 == 0 {
		return fmt.Sprintf("{from: [{source: {principals: [cluster.local/ns/team-%d/sa/client-%d]}}], to: [{operation: {methods: [GET]}}]}", i%100, i)
	}
	return fmt.Sprintf("{to: [{operation: {methods: [GET], paths: [/team-%d/item-%d]}}]}", i%100, i)
}

func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
