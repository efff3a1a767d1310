package meshdir

// ReadNamed reads a file that an object names: one of the mesh directory, or an
// absolute path that is not of the mesh itself.
func (o *Options) ReadNamed(name string) ([]byte, error) { return o.named(name) }

// AddressProblem says why nothing may be got from a port of an IP address, "" if it
// may: the services of the mesh and the proxies' own ports are not for objects.
func (o *Options) AddressProblem(address string, port uint32) string {
	return o.addressProblem(address, port)
}
