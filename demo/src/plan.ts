// Runs a plan that `natten emit wgsl` wrote, with nothing but the browser's WebGPU.

export interface PlanBuffer {
  name: string;
  kind: "scratch" | "input" | "output" | "constant";
  bytes: number;
  shape?: number[];
  dtype?: string;
  values?: number[];
}

export interface RunStep {
  label: string;
  shader: number;
  entry: string;
  constants: Record<string, number>;
  bindings: string[];
  workgroups: [number, number, number];
}

export interface ClearStep {
  clear: string;
  offset: number;
  bytes: number;
}

export interface PlanText {
  format: string;
  version: number;
  problem: string;
  buffers: PlanBuffer[];
  shaders: string[];
  steps: (RunStep | ClearStep)[];
}

/** What a run took and gave. */
export interface Result {
  outputs: Map<string, Float32Array>;
  milliseconds: number;
}

/** A plan with its pipelines and buffers, ready to run. */
export class Plan {
  private constructor(
    private readonly device: GPUDevice,
    readonly text: PlanText,
    private readonly buffers: Map<string, GPUBuffer>,
    private readonly steps: { step: RunStep | ClearStep; pipeline?: GPUComputePipeline; group?: GPUBindGroup }[],
  ) {}

  static async create(device: GPUDevice, text: PlanText): Promise<Plan> {
    if (text.format !== "natten-wgsl" || text.version !== 1) {
      throw new Error("this page reads plans of natten-wgsl version 1; write them again with natten emit wgsl");
    }
    device.pushErrorScope("validation");
    const buffers = new Map<string, GPUBuffer>();
    for (const { name, bytes, kind, values } of text.buffers) {
      const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_DST | GPUBufferUsage.COPY_SRC;
      const buffer = device.createBuffer({ label: name, size: bytes, usage });
      if (kind === "constant" && values) device.queue.writeBuffer(buffer, 0, new Int32Array(values));
      buffers.set(name, buffer);
    }
    const modules = text.shaders.map((code) => device.createShaderModule({ code }));
    for (const module of modules) {
      const errors = (await module.getCompilationInfo()).messages.filter((message) => message.type === "error");
      if (errors.length > 0) throw new Error(`a shader was refused: ${errors[0].message}`);
    }
    const steps = await Promise.all(
      text.steps.map(async (step) => {
        if ("clear" in step) return { step };
        const { shader, entry: entryPoint, constants } = step;
        const compute = { module: modules[shader], entryPoint, constants };
        const pipeline = await device.createComputePipelineAsync({ label: step.label, layout: "auto", compute });
        const entries = step.bindings.map((name, binding) => ({ binding, resource: { buffer: buffers.get(name)! } }));
        const group = device.createBindGroup({ layout: pipeline.getBindGroupLayout(0), entries });
        return { step, pipeline, group };
      }),
    );
    const error = await device.popErrorScope();
    if (error) throw new Error(error.message);
    return new Plan(device, text, buffers, steps);
  }

  /** The shape of a tensor. */
  shape(name: string): number[] {
    return this.text.buffers.find((buffer) => buffer.name === name)?.shape ?? [];
  }

  /** Runs on these inputs. The time is that from the submission to the end of the work. */
  async run(inputs: Map<string, Float32Array>): Promise<Result> {
    for (const { name, kind } of this.text.buffers.filter((buffer) => buffer.kind === "input")) {
      const values = inputs.get(name);
      if (!values) throw new Error(`${kind} ${name} is missing`);
      this.device.queue.writeBuffer(this.buffers.get(name)!, 0, values as Float32Array<ArrayBuffer>);
    }
    await this.device.queue.onSubmittedWorkDone();
    const start = performance.now();
    const encoder = this.device.createCommandEncoder();
    for (const { step, pipeline, group } of this.steps) {
      if ("clear" in step) {
        encoder.clearBuffer(this.buffers.get(step.clear)!, step.offset, step.bytes);
        continue;
      }
      const pass = encoder.beginComputePass();
      pass.setPipeline(pipeline!);
      pass.setBindGroup(0, group!);
      pass.dispatchWorkgroups(...step.workgroups);
      pass.end();
    }
    this.device.queue.submit([encoder.finish()]);
    await this.device.queue.onSubmittedWorkDone();
    const milliseconds = performance.now() - start;
    const outputs = new Map<string, Float32Array>();
    for (const { name, bytes } of this.text.buffers.filter((buffer) => buffer.kind === "output")) {
      outputs.set(name, await this.read(name, bytes));
    }
    return { outputs, milliseconds };
  }

  private async read(name: string, bytes: number): Promise<Float32Array> {
    const readable = this.device.createBuffer({ size: bytes, usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST });
    const encoder = this.device.createCommandEncoder();
    encoder.copyBufferToBuffer(this.buffers.get(name)!, 0, readable, 0, bytes);
    this.device.queue.submit([encoder.finish()]);
    await readable.mapAsync(GPUMapMode.READ);
    const numbers = new Float32Array(readable.getMappedRange().slice(0));
    readable.destroy();
    return numbers;
  }

  destroy(): void {
    for (const buffer of this.buffers.values()) buffer.destroy();
  }
}
